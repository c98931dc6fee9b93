"""Functions that read the files of a run. Content of the right types that is inconsistent is reported as damaged.

L layers, H heads, C classes
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from finetune.errors import DataError, FinetuneError
from finetune.recipe.loader import load_recipe, yaml_text
from finetune.recipe.python_rows import SPLITS
from finetune.recipe.schema import Recipe
from finetune.runs.atomic_files import write_text
from finetune.runs.baselines import BaselineComparison
from finetune.runs.head_names import NAMES, HeadNames
from finetune.runs.head_results import HeadAnalysis, HeadScores, HeadTable, PruningCurves
from finetune.runs.json_files import damaged_file, read_bytes, read_json
from finetune.runs.outputs import FittedOutputs
from finetune.runs.results import Environment, SplitScores, SplitSummary
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import is_series, read_series
from finetune.runs.sweep_results import is_sweep

OWNERSHIP_MARKER = ".claimed"  # exists while a run takes ownership of a folder; see ownership.py
# Keys that the recipe.yaml of a run does not have if an earlier version wrote it, with the values that it trained with.
_MISSING: Mapping[str, Mapping[str, object]] = {
    "model": {"pooling": "head", "classifier_init": "random"},
    "data": {"label_name_rows": False, "validation_size": None, "group_equal_texts": False},
    "evaluation": {"best_model_tolerance": 0.0, "early_stopping_patience": None},
}
_ENTRY = TypeAdapter(dict[str, int | float | None])


@dataclass(frozen=True)
class OwnershipMarker:
    """The content of the marker file: the version that takes ownership of the folder, and the time."""

    finetune: str
    since: str


def existing_run(path: Path) -> RunFolder:
    """Return the run folder at a path that the user gave.

    Raises:
        DataError: there is no folder, it cannot be read, it contains no recipe.yaml, or it is a series or a sweep.
    """
    try:
        reason = "" if stat.S_ISDIR(path.stat().st_mode) else "it is a file"
        if not reason and is_series(path):
            raise DataError(_series_message(path))
        if not reason and is_sweep(path):
            raise DataError(sweep_message(path))
        if not reason and not RunFolder(path).recipe.exists():
            reason = "no recipe.yaml"
    except FileNotFoundError:
        reason = "there is no such folder"
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise DataError(f"{path} is not a finished run ({reason}); name the folder that `train` wrote")
    return RunFolder(path.absolute())


def _series_message(path: Path) -> str:
    """Return the error message where a run is needed and a series was given."""
    runs = sorted(path.glob("seed-*"))
    example = f", such as {runs[0]}" if runs else ""
    return f"{path} is a series of {len(runs)} runs; name one of them{example}"


def sweep_message(path: Path) -> str:
    """Return the error message where a run is needed and a sweep was given."""
    runs = sorted(file for file in (path / "trials").glob("*") if file.is_dir())
    example = f", such as {runs[0]}" if runs else ""
    return f"{path} is a sweep; name the folder of one of its trials{example}, or train its best_recipe.yaml"


def check_has_model(path: Path) -> None:
    """Raise DataError unless a folder that the user gave is a run, or contains a trained model."""
    folder = RunFolder(path)
    if not any(file.exists() for file in (path / "classifier.json", folder.model / "classifier.json", folder.recipe)):
        if is_sweep(path):
            raise DataError(sweep_message(path))
        reason = "it contains no trained model" if path.is_dir() else "there is no such folder"
        raise DataError(f"{path} cannot be used: {reason}; name a run folder, such as runs/toy")


def not_a_run(folder: RunFolder) -> str:
    """Return why a folder is not a run, or "" if it is one; the content of its files is checked, not their names."""
    try:
        if _is_being_taken(folder.path):
            return ""
        # A run with a ranks.json has a rank_pattern in its recipe that is no longer valid.
        overrides = ["peft.rank_pattern={}"] if folder.ranks.is_file() else []
        read_recipe(folder, overrides, read_data=False)
        read_json(folder.environment, Environment)
        read_summary(folder)
    except FinetuneError as error:
        return str(error).splitlines()[0].rstrip(":")
    return ""


def not_a_series(folder: SeriesFolder) -> str:
    """Return why a folder is not a series of runs, or "" if it is one."""
    try:
        if not _is_being_taken(folder.path):
            read_recipe(folder, read_data=False)
            read_series(folder.path)
    except FinetuneError as error:
        return str(error).splitlines()[0].rstrip(":")
    return ""


def _is_being_taken(path: Path) -> bool:
    """Return whether a run is taking ownership of a folder, or was killed while it did; DataError if it is unclear."""
    marker = path / OWNERSHIP_MARKER
    if marker.is_file():
        read_json(marker, OwnershipMarker)
    return marker.is_file()


def read_recipe(folder: RunFolder | SeriesFolder, overrides: Sequence[str] = (), *, read_data: bool) -> Recipe:
    """Return a run's recipe with `section.key=value` overrides.

    Keys that did not exist when the run was trained are off.

    Args:
        read_data: whether the data files must exist, because they are read again.

    Raises:
        DataError: the file is missing or truncated (a truncated recipe can still be valid).
        RecipeError: the recipe or an override is wrong.
    """
    if not read_bytes(folder.recipe).endswith(b"\n"):
        raise damaged_file(folder.recipe, "its last line is incomplete")
    stored = [file for split in SPLITS if (file := folder.rows / f"{split}.parquet").is_file()]  # found after a move
    rows = [f"data.{file.stem}_file={yaml_text(str(file.absolute()))}" for file in stored]
    return load_recipe(folder.recipe, [*rows, *overrides], read_data=read_data, missing=_MISSING)


def read_summary(folder: RunFolder) -> dict[str, SplitSummary]:
    """Return the summary of each split of a run; DataError if the file is missing or damaged."""
    summary = read_json(folder.data, dict[str, SplitSummary])
    if "train" not in summary:
        raise damaged_file(folder.data, "it has no train split")
    return summary


def read_history(folder: RunFolder) -> list[dict[str, int | float | None]]:
    """Return the entries of a run's history, each with its step; an incomplete last line is ignored.

    Raises:
        DataError: the file is missing, or a line is not a valid entry.
    """
    entries = []
    for number, line in enumerate(read_bytes(folder.history).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            entry = _ENTRY.validate_json(line, strict=True)
        except ValidationError as error:
            raise damaged_file(folder.history, f"line {number}: {error.errors()[0]['msg']}") from error
        if entry.get("step") is None:
            raise damaged_file(folder.history, f"line {number} has no step")
        entries.append(entry)
    return entries


def truncate_history(folder: RunFolder, step: int) -> None:
    """Remove the history entries after `step`, because a resumed run writes them again."""
    entries = read_history(folder) if folder.history.is_file() else []
    kept = [json.dumps(entry, allow_nan=False) + "\n" for entry in entries if (entry["step"] or 0) <= step]
    write_text(folder.history, "".join(kept))


def read_scores(folder: RunFolder) -> dict[str, SplitScores]:
    """Return the scores of each split of a run; DataError if the file is missing or damaged."""
    scores = read_json(folder.scores, dict[str, SplitScores])
    for split, split_scores in scores.items():
        classes = len(split_scores.per_class)
        if split_scores.metrics.keys() != next(iter(scores.values())).metrics.keys():
            raise damaged_file(folder.scores, f"the metrics of {split} differ from those of the first split")
        if split_scores.confusion is not None and [len(row) for row in split_scores.confusion] != [classes] * classes:
            raise damaged_file(folder.scores, f"the confusion matrix of {split} is not {classes} by {classes}")
    return scores


def read_fitted_outputs(folder: RunFolder) -> FittedOutputs | None:
    """Return what was fitted to the validation rows, None if nothing was; DataError if the file is damaged."""
    return read_json(folder.fitted_outputs, FittedOutputs) if folder.fitted_outputs.exists() else None


def read_baselines(folder: RunFolder) -> BaselineComparison | None:
    """Return the comparison with baselines, None if there is none; DataError if the file is damaged."""
    if not folder.baselines.exists():
        return None
    comparison = read_json(folder.baselines, BaselineComparison)
    for split, result in comparison.splits.items():
        if result.baselines.keys() != comparison.fitted.keys():
            raise damaged_file(folder.baselines, f"the baselines of {split} are not those that were fitted")
        for name, scores in result.baselines.items():
            if scores.metrics.keys() != result.classifier.keys() or comparison.metric not in scores.differences:
                raise damaged_file(
                    folder.baselines, f"the metrics of {name} on {split} are not those of the classifier"
                )
        if comparison.metric not in result.classifier:
            raise damaged_file(folder.baselines, f"{split} has no {comparison.metric}")
    return comparison


def read_heads(folder: RunFolder) -> HeadAnalysis:
    """Return the head analysis of a run; DataError if the file is missing or damaged."""
    analysis = read_json(folder.heads, HeadAnalysis)
    if problem := next(_head_problems(analysis), None):
        raise damaged_file(folder.heads, problem)
    return analysis


def _head_problems(analysis: HeadAnalysis) -> Iterator[str]:
    """Yield the inconsistencies of a head analysis."""
    if not analysis.methods:
        yield "methods: the list is empty"
        return
    shape = _shape(analysis.methods[0].values)
    for scores in analysis.methods:
        yield from _score_problems(scores, shape)
    if analysis.truth is not None:
        yield from _curve_problems(analysis.truth, len(analysis.methods))
    if analysis.leave_one_out is not None and not analysis.leave_one_out.tests:
        yield "leave_one_out: no head was tested"
    if analysis.names is not None:
        yield from (f"names: {problem}" for problem in _name_problems(analysis.names, shape))
    if analysis.changes is not None:
        for name, table in vars(analysis.changes).items():
            if isinstance(table, list) and _shape(table) != shape:
                yield f"changes.{name} has another shape than the scores"


def _name_problems(names: HeadNames, shape: Sequence[int]) -> Iterator[str]:
    """Yield the inconsistencies of the names of heads."""
    for name in ("effects", "effect_errors", "changes", "context_changes"):
        if _shape(getattr(names, name)) != shape:
            yield f"{name} has another shape than the scores"
    for each in names.named:
        heads = [(each.layer, each.head), *([each.partner] if each.partner else [])]
        if each.name not in NAMES:
            yield f"{each.name!r} is not one of {', '.join(NAMES)}"
        if any(not (0 <= layer < len(shape) and 0 <= head < shape[layer]) for layer, head in heads):
            yield f"{each.text()}: the table does not have this head"


def _shape(table: HeadTable) -> list[int]:
    """Return the number of heads of each layer, (L,)."""
    return [len(row) for row in table]


def _score_problems(scores: HeadScores, shape: Sequence[int]) -> Iterator[str]:
    """Yield the inconsistencies of one method's values; `shape` is the number of heads in each layer, (L,)."""
    if not shape or min(shape) < 1 or len(set(shape)) > 1:
        yield f"{scores.method}: the values are not a layers-by-heads table"
    elif _shape(scores.values) != shape or _shape(scores.standard_errors) != shape:
        yield f"{scores.method}: values and standard errors have different shapes"
    else:
        heads = {(cell.layer, cell.head) for cell in scores.sorted_by_value()}
        if not heads or not heads <= set(scores.order) or len(set(scores.order)) != len(scores.order):
            yield f"{scores.method}: the order does not contain each head exactly once"
        elif any(not (0 <= layer < len(shape) and 0 <= head < shape[layer]) for layer, head in scores.order):
            yield f"{scores.method}: the order contains a head that the table does not have"


def _curve_problems(result: PruningCurves, methods: int) -> Iterator[str]:
    """Yield the inconsistencies of the pruning curves."""
    if len(result.curves) != methods:
        yield f"truth: {len(result.curves)} curves for {methods} methods"
    curves: dict[str, Sequence[float]] = {curve.method: curve.scores for curve in result.curves}
    curves |= {f"{curve.method}, reversed": curve.reverse_scores for curve in result.curves if curve.reverse_scores}
    if result.random is not None:
        curves = {**curves, **{name: getattr(result.random, name) for name in ("mean_scores", "low", "high")}}
    for name, scores in curves.items():
        if len(scores) != len(result.shares) or not scores or not all(map(math.isfinite, scores)):
            yield f"truth: {name} has {len(scores)} scores for {len(result.shares)} shares of heads"
