"""Predicted rows of a run as examples for people, read from `predictions.parquet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finetune.runs.json_files import damaged_file, read_bytes
from finetune.runs.run_folder import RunFolder

_IS_TEXT = (pa.types.is_string, pa.types.is_large_string)
_IS_LIST = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_IS_LABEL = (*_IS_TEXT, *_IS_LIST, pa.types.is_floating)
# Column -> the types that it may have.
_COLUMNS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "split": _IS_TEXT,
    "row": (pa.types.is_integer,),
    "text": _IS_TEXT,
    "label": _IS_LABEL,
    "predicted": _IS_LABEL,
    "probabilities": _IS_LIST,
    "loss": (pa.types.is_floating,),
}


@dataclass(frozen=True)
class PredictedRow:
    """A row, its label and what the classifier predicted.

    Attributes:
        text: the text, or both texts of a pair in one line.
        confidence: the probability of the predicted label; None for several labels and for a value.
        texts: the text, or both texts of a pair.
    """

    split: str
    row: int
    text: str
    label: str
    predicted: str
    confidence: float | None
    loss: float
    texts: tuple[str, ...] = ()


def worst_predictions(folder: RunFolder, count: int) -> list[PredictedRow]:
    """Return the wrongly predicted rows with the highest loss, highest first.

    Raises:
        DataError: the file with the predictions is missing or damaged.
    """
    table = read_predictions(folder)
    rows = table.filter(_is_wrong(table["label"], table["predicted"]))
    rows = rows.take(pc.sort_indices(rows["loss"], sort_keys=[("", "descending")])[:count])
    return [_predicted_row(row) for row in rows.to_pylist()]


def _is_wrong(labels: pa.ChunkedArray, predicted: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if _type_name(labels.type) != "list":
        return pc.not_equal(labels, predicted)
    pairs = zip(labels.to_pylist(), predicted.to_pylist(), strict=True)
    return pa.array([label != other for label, other in pairs], pa.bool_())


def first_predictions(folder: RunFolder, split: str, count: int) -> list[PredictedRow]:
    """Return the first rows of a split: examples that were not selected by how well they were predicted.

    Raises:
        DataError: the file with the predictions is missing or damaged.
    """
    table = read_predictions(folder)
    rows = table.filter(pc.equal(table["split"], split)).slice(0, count)
    return [_predicted_row(row) for row in rows.to_pylist()]


def read_predictions(folder: RunFolder) -> pa.Table:
    """Return the table of predictions; raise DataError if the file is missing or damaged."""
    content = read_bytes(folder.predictions)
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_file(folder.predictions, str(error).strip().splitlines()[0]) from error
    if problem := _problem(table):
        raise damaged_file(folder.predictions, problem)
    return table


def _problem(table: pa.Table) -> str:
    """Return why a table is not a table of predictions, or ""."""
    for name, checks in _COLUMNS.items():
        if name not in table.column_names:
            return f"it has no column {name}"
        if not any(check(table[name].type) for check in checks):
            return f"column {name} is of type {table[name].type}"
        if table[name].null_count:
            return f"column {name} has empty cells"
    if _type_name(table["label"].type) != _type_name(table["predicted"].type):
        return "labels and predictions are of different types"
    sizes = pc.min_max(pc.list_value_length(table["probabilities"])).as_py()
    if table.num_rows and not sizes["min"]:
        return "a row has no probabilities"
    if sizes["min"] != sizes["max"]:
        return "the rows have different numbers of probabilities"
    return ""


def _type_name(column: pa.DataType) -> str:
    """Return "text", "list" or "number"."""
    if any(check(column) for check in _IS_TEXT):
        return "text"
    return "list" if any(check(column) for check in _IS_LIST) else "number"


def _predicted_row(row: dict[str, Any]) -> PredictedRow:
    single_label = isinstance(row["label"], str)
    texts = tuple(row[name] for name in ("text", "text_1") if row.get(name) is not None)
    return PredictedRow(
        split=row["split"],
        row=row["row"],
        text=" ⏐ ".join(filter(None, texts)),
        texts=texts,
        label=_label_text(row["label"]),
        predicted=_label_text(row["predicted"]),
        confidence=max(row["probabilities"]) if single_label else None,
        loss=row["loss"],
    )


def _label_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
