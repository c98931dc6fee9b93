"""Read back what a run left in its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finetune.recipe import Recipe
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import damaged, read_bytes, read_json
from finetune.runs.results import SplitScores, SplitSummary, TrainingResult
from finetune.runs.run_files import (
    Environment,
    HeadFailure,
    read_heads,
    read_history,
    read_recipe,
    read_scores,
    read_summary,
)
from finetune.runs.run_folder import RunFolder

_TYPES = pa.types
_IS_TEXT = (_TYPES.is_string, _TYPES.is_large_string)
_IS_LIST = (_TYPES.is_list, _TYPES.is_large_list, _TYPES.is_fixed_size_list)
_IS_LABEL = (*_IS_TEXT, *_IS_LIST, _TYPES.is_floating)
# Columns of the predictions -> the types that they may have.
_COLUMNS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "split": _IS_TEXT,
    "row": (_TYPES.is_integer,),
    "text": _IS_TEXT,
    "label": _IS_LABEL,
    "predicted": _IS_LABEL,
    "probabilities": _IS_LIST,
    "loss": (_TYPES.is_floating,),
}


@dataclass(frozen=True)
class WrongRow:
    """A row that the classifier got wrong, or the worst of a regression."""

    split: str
    row: int
    text: str
    label: str
    predicted: str
    confidence: float | None
    loss: float


@dataclass(frozen=True)
class RunRecord:
    """All that the report tells."""

    recipe: Recipe
    environment: Environment
    data: dict[str, SplitSummary]
    history: list[dict[str, int | float | None]]
    training: TrainingResult
    scores: dict[str, SplitScores]
    heads: HeadAnalysis | None
    head_note: str
    worst: list[WrongRow]


def read_record(
    folder: RunFolder, overrides: Sequence[str] = (), *, worst: int = 10, before_scoring: bool = False
) -> RunRecord:
    """Return what the run folder holds, all of it checked.

    Args:
        overrides: to the recipe, as `section.key=value`.
        before_scoring: scores and predictions may be missing, as they are about to be written.

    Raises:
        DataError: the run is not finished, or one of its files is damaged.
        RecipeError: its recipe cannot be read.
    """
    recipe = read_recipe(folder, overrides, read_data=False)
    scores = {} if before_scoring and not folder.scores.exists() else read_scores(folder)
    heads = read_heads(folder) if folder.heads.exists() else None
    return RunRecord(
        recipe=recipe,
        environment=read_json(folder.environment, Environment),
        data=read_summary(folder),
        history=read_history(folder),
        training=read_json(folder.training, TrainingResult),
        scores=scores,
        heads=heads,
        head_note=_head_note(folder, recipe, analyzed=heads is not None),
        worst=[] if not scores or (before_scoring and not folder.predictions.exists()) else worst_rows(folder, worst),
    )


def _head_note(folder: RunFolder, recipe: Recipe, *, analyzed: bool) -> str:
    """Return what must be known where the head analysis failed or is missing, or ""."""
    if folder.heads_failure.exists():
        shown = "; what is shown below is an earlier analysis" if analyzed else ""
        return f"The head analysis failed: {read_json(folder.heads_failure, HeadFailure).reason}{shown}."
    if recipe.head_importance is not None and not analyzed:
        return "The heads have not been analyzed; `finetune heads RUN` does it."
    return ""


def worst_rows(folder: RunFolder, most: int) -> list[WrongRow]:
    """Return the rows with a wrong prediction and the highest loss, worst first.

    Raises:
        DataError: the file with the predictions is missing or damaged.
    """
    content = read_bytes(folder.predictions)
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(folder.predictions, str(error).strip().splitlines()[0]) from error
    if fault := _fault(table):
        raise damaged(folder.predictions, fault)
    labels = table["label"].to_pylist()
    wrong: list[int] = [
        index
        for index, pair in enumerate(zip(labels, table["predicted"].to_pylist(), strict=True))
        if pair[0] != pair[1]
    ]
    chosen = table.take(pa.array(wrong, pa.int64()))
    chosen = chosen.take(pc.sort_indices(chosen["loss"], sort_keys=[("", "descending")])[:most])
    return [_wrong_row(row) for row in chosen.to_pylist()]


def _fault(table: pa.Table) -> str:
    """Return what keeps a table from being one of predictions, or ""."""
    for name, kinds in _COLUMNS.items():
        if name not in table.column_names:
            return f"it has no column {name}"
        if not any(kind(table[name].type) for kind in kinds):
            return f"column {name} is of type {table[name].type}"
        if table[name].null_count:
            return f"column {name} has empty cells"
    if _kind(table["label"].type) != _kind(table["predicted"].type):
        return "labels and predictions are of different types"
    if table.num_rows and not pc.min(pc.list_value_length(table["probabilities"])).as_py():
        return "a row has no probabilities"
    return ""


def _kind(column: pa.DataType) -> str:
    """Return "text", "list" or "number"."""
    if any(kind(column) for kind in _IS_TEXT):
        return "text"
    return "list" if any(kind(column) for kind in _IS_LIST) else "number"


def _wrong_row(row: dict[str, Any]) -> WrongRow:
    single = isinstance(row["label"], str)
    return WrongRow(
        split=row["split"],
        row=row["row"],
        text=" ⏐ ".join(row[name] for name in ("text", "text_1") if row.get(name)),
        label=_shown(row["label"]),
        predicted=_shown(row["predicted"]),
        confidence=max(row["probabilities"]) if single else None,
        loss=row["loss"],
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
