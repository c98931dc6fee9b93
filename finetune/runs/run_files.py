"""Read the files of a run, each checked as a whole: what fits the types but not itself is damaged too.

Imports no torch.

L layers, H heads, C classes
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from finetune.errors import DataError, FinetuneError
from finetune.recipe import Recipe, load_recipe
from finetune.runs.head_results import HeadAnalysis, HeadScores, PruningCurves, Table
from finetune.runs.json_files import damaged, read_bytes, read_json
from finetune.runs.results import SplitScores, SplitSummary
from finetune.runs.run_folder import RunFolder

CLAIM = ".claimed"  # lies in a folder while it is made a run's: whoever is killed then can start again
_ENTRY = TypeAdapter(dict[str, int | float | None])


@dataclass(frozen=True)
class Claim:
    """What the file that marks a folder as claimed holds: which version claimed it, and when."""

    finetune: str
    since: str


@dataclass(frozen=True)
class Environment:
    """What a run ran on, as far as the report shows it; `environment.json` holds more."""

    started: str
    finetune: str
    packages: dict[str, str]
    python: str
    device: str
    processes: int
    mixed_precision: str
    seed: int
    commit: str | None = None


@dataclass(frozen=True)
class HeadFailure:
    """Why a finished run has no new analysis of its heads."""

    reason: str


def existing_run(path: Path) -> RunFolder:
    """Return the run folder at a path that a user gave.

    Raises:
        DataError: there is no folder, it cannot be read, or nothing in it is named as a run's recipe.
    """
    try:
        reason = "" if stat.S_ISDIR(path.stat().st_mode) else "it is a file"
        if not reason and not RunFolder(path).recipe.exists():
            reason = "no recipe.yaml"
    except FileNotFoundError:
        reason = "there is no such folder"
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise DataError(f"{path} holds no finished run ({reason}); name the folder that `train` wrote")
    return RunFolder(path.absolute())


def not_a_run(folder: RunFolder) -> str:
    """Return why the files of a folder are not those of a run, or "" if they are: by what they hold, not by names."""
    try:
        if (folder.path / CLAIM).is_file():
            read_json(folder.path / CLAIM, Claim)
            return ""
        # The recipe of a run that wrote ranks.json has a rank_pattern that is no longer valid.
        valid = ["peft.rank_pattern={}"] if folder.ranks.is_file() else []
        read_recipe(folder, valid, read_data=False)
        read_json(folder.environment, Environment)
        read_summary(folder)
    except FinetuneError as error:
        return str(error).splitlines()[0].rstrip(":")
    return ""


def read_recipe(folder: RunFolder, overrides: Sequence[str] = (), *, read_data: bool) -> Recipe:
    """Return a run's recipe with `section.key=value` overrides.

    Args:
        read_data: whether the data files must be there, as they are read again.

    Raises:
        DataError: the file is missing or was cut, which need not make it a wrong recipe.
        RecipeError: the recipe or an override is wrong.
    """
    if not read_bytes(folder.recipe).endswith(b"\n"):
        raise damaged(folder.recipe, "it ends in the middle of a line")
    return load_recipe(folder.recipe, overrides, read_data=read_data)


def read_summary(folder: RunFolder) -> dict[str, SplitSummary]:
    """Return what each split of a run held; DataError if the file is missing or damaged."""
    summary = read_json(folder.data, dict[str, SplitSummary])
    if "train" not in summary:
        raise damaged(folder.data, "it describes no training rows")
    return summary


def read_history(folder: RunFolder) -> list[dict[str, int | float | None]]:
    """Return the entries of a run's history, each with its step. A last line that was cut off does not count.

    Raises:
        DataError: the file is missing, or a line is not an entry.
    """
    entries = []
    for number, line in enumerate(read_bytes(folder.history).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            entry = _ENTRY.validate_json(line, strict=True)
        except ValidationError as error:
            raise damaged(folder.history, f"line {number}: {error.errors()[0]['msg']}") from error
        if entry.get("step") is None:
            raise damaged(folder.history, f"line {number} has no step")
        entries.append(entry)
    return entries


def read_scores(folder: RunFolder) -> dict[str, SplitScores]:
    """Return the scores of each split of a run; DataError if the file is missing or damaged."""
    scores = read_json(folder.scores, dict[str, SplitScores])
    for split, found in scores.items():
        labels = len(found.per_class)
        if found.metrics.keys() != next(iter(scores.values())).metrics.keys():
            raise damaged(folder.scores, f"{split} has other metrics than the first split")
        if found.confusion is not None and [len(row) for row in found.confusion] != [labels] * labels:
            raise damaged(folder.scores, f"the confusion matrix of {split} is not of {labels} by {labels} classes")
    return scores


def read_heads(folder: RunFolder) -> HeadAnalysis:
    """Return the analysis of a run's heads; DataError if the file is missing or damaged."""
    analysis = read_json(folder.heads, HeadAnalysis)
    if fault := next(_head_faults(analysis), None):
        raise damaged(folder.heads, fault)
    return analysis


def _head_faults(analysis: HeadAnalysis) -> Iterator[str]:
    """Yield what does not fit together in an analysis of heads."""
    if not analysis.methods:
        yield "methods: there are none"
        return
    shape = _shape(analysis.methods[0].values)
    for scores in analysis.methods:
        yield from _score_faults(scores, shape)
    if analysis.truth is not None:
        yield from _truth_faults(analysis.truth, len(analysis.methods))
    if analysis.leave_one_out is not None and not analysis.leave_one_out.tests:
        yield "leave_one_out: no head was tested"
    if analysis.changes is not None:
        for name, table in vars(analysis.changes).items():
            if isinstance(table, list) and _shape(table) != shape:
                yield f"changes.{name} is not a table of the same heads"


def _shape(table: Table) -> list[int]:
    """Return the numbers of heads by layer, (L,)."""
    return [len(row) for row in table]


def _score_faults(scores: HeadScores, shape: Sequence[int]) -> Iterator[str]:
    """Yield what is wrong with the values of one method; `shape` is the number of heads in each layer, (L,)."""
    if not shape or min(shape) < 1 or len(set(shape)) > 1:
        yield f"{scores.method}: the values are not a table of layers by heads"
    elif _shape(scores.values) != shape or _shape(scores.standard_errors) != shape:
        yield f"{scores.method}: values and standard errors are not tables of the same heads"
    else:
        heads = {(cell.layer, cell.head) for cell in scores.sorted_by_value()}
        if not heads or not heads <= set(scores.order) or len(set(scores.order)) != len(scores.order):
            yield f"{scores.method}: the order does not name each head once"
        elif any(not (0 <= layer < len(shape) and 0 <= head < shape[layer]) for layer, head in scores.order):
            yield f"{scores.method}: the order names a head that the table lacks"


def _truth_faults(truth: PruningCurves, methods: int) -> Iterator[str]:
    """Yield what is wrong with the test of the rankings."""
    if len(truth.curves) != methods:
        yield f"truth: {len(truth.curves)} curves for {methods} methods"
    curves: Mapping[str, Sequence[float]] = {curve.method: curve.scores for curve in truth.curves}
    if truth.random is not None:
        curves = {**curves, **{name: getattr(truth.random, name) for name in ("mean_scores", "low", "high")}}
    for name, scores in curves.items():
        if len(scores) != len(truth.shares) or not scores or not all(map(math.isfinite, scores)):
            yield f"truth: {name} has {len(scores)} scores for {len(truth.shares)} shares of heads"
