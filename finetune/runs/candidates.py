"""Runs and series as `compare` reads them: all files are read and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from finetune.errors import DataError, shorten
from finetune.recipe.schema import Recipe
from finetune.runs.comparison import RunSummary
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import read_json
from finetune.runs.predictions import read_predictions
from finetune.runs.removable_heads import removable_heads
from finetune.runs.results import Environment, SplitScores, TrainingResult
from finetune.runs.run_files import existing_run, read_heads, read_recipe, read_scores
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import is_series, read_series

_WITHIN = 0.01  # one point: the loss of score at which heads count as not needed
# Keys of a recipe that say where a run is written and how it is resumed, not how it is trained.
_NOT_COMPARED = {"output_dir", "overwrite_output_dir", "checkpoint.resume_from_checkpoint", "seeds"}
_UNUSED = {"–", "null", "false", "{}"}  # a key of a section that only some recipes have, without effect in those
_MAX_VALUE = 60  # characters of the value of a recipe key


@dataclass(frozen=True)
class CandidateRun:
    """The files of one finished run."""

    recipe: Recipe
    environment: Environment
    training: TrainingResult
    scores: dict[str, SplitScores]
    heads: HeadAnalysis | None
    predictions: pa.Table


@dataclass(frozen=True)
class Candidate:
    """A run, or a series of runs that differ only in their seed.

    Attributes:
        name: the path as the user gave it.
        is_series: whether `runs` are the finished runs of a series; a series can have one run.
        unfinished: the seeds of a series whose runs are not finished.
    """

    name: str
    path: Path
    runs: list[CandidateRun]
    is_series: bool
    unfinished: list[int] = field(default_factory=list)

    def recipe(self) -> Recipe:
        """Return the recipe, of a series that of its first seed."""
        return self.runs[0].recipe

    def label_names(self) -> list[str]:
        """Return the names of the labels in the order of the class ids; none in regression."""
        scores = next(iter(self.runs[0].scores.values()), None)
        return [row.label for row in scores.per_class] if scores else []

    def splits(self) -> list[str]:
        """Return the splits that every run has predictions for."""
        found = [set(pc.unique(run.predictions["split"]).to_pylist()) for run in self.runs]
        return [split for split in ("validation", "test") if all(split in splits for splits in found)]

    def chose_checkpoint(self) -> bool:
        """Return whether validation rows selected the weights of a run."""
        return any(run.training.best_step is not None for run in self.runs)

    def head_methods(self) -> set[str | None]:
        """Return the leading ranking methods of the runs; None for a run without analysis."""
        return {run.heads.methods[0].method if run.heads else None for run in self.runs}

    def summary(self) -> RunSummary:
        """Return what the run costs, and how many heads it needs."""
        training = [run.training for run in self.runs]
        methods = self.head_methods()
        needed = [_heads_needed(run.heads) for run in self.runs]
        flops = [result.flops_per_row for result in training]
        known = [count for count in needed if count is not None]
        first = self.runs[0].heads
        return RunSummary(
            name=self.name,
            path=str(self.path),
            seeds=[run.recipe.seed for run in self.runs],
            trainable_parameters=fmean([result.trainable_parameters for result in training]),
            total_parameters=fmean([result.total_parameters for result in training]),
            train_seconds=fmean([result.speed.train_seconds for result in training]),
            train_samples_per_second=fmean([result.speed.train_samples_per_second for result in training]),
            eval_samples_per_second=fmean([result.speed.eval_samples_per_second for result in training]),
            peak_memory_mb=fmean([result.speed.peak_memory_mb for result in training]),
            flops_per_row=fmean([value for value in flops if value is not None]) if None not in flops else None,
            device=self.runs[0].environment.device,
            head_method=methods.pop() if len(methods) == 1 else None,
            heads=len(first.methods[0].order) if first else None,
            heads_needed=fmean(known) if len(known) == len(self.runs) else None,
        )


def read_candidate(path: Path) -> Candidate:
    """Return the run or series in a folder.

    Raises:
        DataError: it is not a finished run, or one of its files is damaged.
        RecipeError: its recipe cannot be read.
    """
    if not names_series(path):
        folder = existing_run(path)
        return Candidate(str(path), folder.path, [_read_run(folder)], is_series=False)
    series, folders = read_series(path), SeriesFolder(path.absolute())
    finished = [member.seed for member in series.with_status("finished")]
    if not finished:
        raise DataError(f"{path} is a series without a finished run; start its recipe again to finish it")
    runs = [_read_run(folders.member(seed)) for seed in finished]
    unfinished = [member.seed for member in series.members if member.seed not in finished]
    return Candidate(str(path), folders.path, runs, is_series=True, unfinished=unfinished)


def names_series(path: Path) -> bool:
    """Return whether a path that the user gave is the folder of a series; not if it cannot be read."""
    try:
        return is_series(path)
    except OSError:
        return False


def _read_run(folder: RunFolder) -> CandidateRun:
    return CandidateRun(
        recipe=read_recipe(folder, read_data=False),
        environment=read_json(folder.environment, Environment),
        training=read_json(folder.training, TrainingResult),
        scores=read_scores(folder),
        heads=read_heads(folder) if folder.heads.exists() else None,
        predictions=read_predictions(folder),
    )


def _heads_needed(analysis: HeadAnalysis | None) -> int | None:
    """Return the smallest number of heads whose score is within one point of the full model's; None without a curve."""
    removable = None if analysis is None else removable_heads(analysis, _WITHIN)
    return None if removable is None else removable.heads - removable.count


def recipe_differences(candidates: Sequence[Candidate]) -> dict[str, list[str]]:
    """Return the dotted recipe keys whose values differ, with the value of each candidate as text."""
    flat = [_flat(candidate.recipe().model_dump(mode="json")) for candidate in candidates]
    for candidate, values in zip(candidates, flat, strict=True):
        if any(each.is_series for each in candidates) and values["data.split_seed"] is None:
            values["data.split_seed"] = values["seed"]  # as a series writes it
        if candidate.is_series:
            values["seed"] = ", ".join(str(run.recipe.seed) for run in candidate.runs)
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key not in _NOT_COMPARED]
    table = {key: [_as_text(values[key]) if key in values else "–" for values in flat] for key in keys}
    differing = {key for key in keys if len({str(values.get(key, _flat)) for values in flat}) > 1}
    return {key: values for key, values in table.items() if key in differing and set(values) - _UNUSED}


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values


def _as_text(value: Any) -> str:
    """Return a value of a recipe as YAML writes it, shortened; of rows in the recipe their number."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} rows"
    names = {None: "null", True: "true", False: "false"}
    text = names[value] if value is None or isinstance(value, bool) else str(value)
    return shorten(text.replace("'", "") if isinstance(value, list) else text, _MAX_VALUE)
