"""The predicted rows of a run as compressed columns in the page, which `scripts/rows.js` reads.

Each column is one embedded element named `rows-NAME`: the bytes of a typed array, the first byte of every value, then
the second byte of every value and so on, because bytes of one kind compress better. The element `rows-manifest`
describes the columns as JSON.

N rows, K labels
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from finetune.report.embedding import embedded
from finetune.report.row_outcomes import is_text, label_ids, wrong_rows
from finetune.report.row_texts import text_elements

LENGTH = "length"  # column with the number of characters, if the texts themselves may not be shown
MAX_PROBABILITIES = 4_000_000  # in one page; otherwise the highest of each row
MAX_CHARACTERS = 18_000_000  # of all columns and texts in one page, if there are texts to leave out
MAX_TEXT_BYTES, MIN_TEXT_BYTES = 10_000_000, 1_000_000  # compressed
_MAX_KEPT = 5  # highest probabilities of a row, if not all are kept
_EXACT = 1_000_000  # values; above it they are rounded more, because the page would become too large
_LOG_ODDS_STEPS = (1600, 200)  # per unit of log-odds; the second is used above _EXACT values
_MANTISSA_BITS = (23, 10)  # of floats; the second is used above _EXACT values
_ZERO = 32768  # log-odds of zero as a 16-bit integer
_CLOSE = 1e-3  # relative difference between the stored loss and the loss of the stored probabilities


@dataclass
class _Columns:
    """The columns of a page by name, and what else `rows.js` must know."""

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def elements(self) -> list[Markup]:
        """Return the elements of the columns."""
        return [_column_element(name, values) for name, values in self.arrays.items()]

    def manifest_element(self) -> Markup:
        """Return the element that describes the columns."""
        kinds = {name: values.dtype.name for name, values in self.arrays.items()}
        return embedded("rows-manifest", json.dumps(self.manifest | {"columns": kinds}, separators=(",", ":")).encode())


def row_elements(
    table: pa.Table,
    label_names: Sequence[str],
    shown_split: str,
    label_errors: Sequence[int] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Markup:
    """Return the HTML elements that contain the rows of a table of predictions.

    Args:
        table: see `predictions_table`; without texts it must have the column `length`.
        label_names: in the order of the probabilities.
        shown_split: the split that the page shows first.
        label_errors: positions of the rows whose label is probably wrong, the most likely errors first; None if the
            labels were not checked.
        thresholds: those of the model, by label name; None if it has none.
    """
    splits = table["split"].unique().to_pylist()
    kind = problem_type(table)
    columns = _Columns({"count": table.num_rows, "splits": splits, "shownSplit": shown_split, "problemType": kind})
    columns.arrays["split"] = _smallest(label_ids(table["split"], splits))
    # Row numbers rise by one in most rows: the differences compress to nothing.
    columns.arrays["row"] = np.diff(table["row"].to_numpy().astype(np.uint32), prepend=np.uint32(0))
    columns.arrays["length"] = _smallest(text_lengths(table))
    names: list[str] = []
    if kind == "regression":
        _add_values(columns, table)
    else:
        width = pc.max(pc.list_value_length(table["probabilities"])).as_py() if table.num_rows else 0
        names = _label_names(table, label_names, width)
        _add_labels(columns, table, names)
        columns.manifest["probabilityLabels"] = width
        probabilities = _probabilities(table, width)
        _add_probabilities(columns, table, probabilities)
    columns.manifest["labels"] = names
    columns.manifest["thresholds"] = dict(thresholds or {})
    first = wrong_rows(table)
    if label_errors is not None:
        columns.arrays["label-errors"] = np.array(label_errors, np.uint32)
        first[columns.arrays["label-errors"]] = True
    elements = columns.elements()
    budget = (MAX_CHARACTERS - sum(map(len, elements))) * 3 // 4  # base64 needs four characters for three bytes
    texts = text_elements(table, first, min(MAX_TEXT_BYTES, max(budget, MIN_TEXT_BYTES)))
    columns.manifest["texts"] = texts.manifest
    if not texts.contained.all():
        columns.arrays["has-text"] = texts.contained.astype(np.uint8)
        elements.append(_column_element("has-text", columns.arrays["has-text"]))
    return Markup("\n").join([columns.manifest_element(), *elements, *texts.elements])


def problem_type(table: pa.Table) -> str:
    """Return the problem type, which the type of the labels shows."""
    labels = table["label"].type
    if pa.types.is_floating(labels):
        return "regression"
    return "single_label_classification" if is_text(labels) else "multi_label_classification"


def text_lengths(table: pa.Table) -> np.ndarray:
    """Return the number of characters of each row, (N,); both texts of a pair count."""
    if LENGTH in table.column_names:
        return np.asarray(table[LENGTH].to_numpy())
    total = np.zeros(table.num_rows, np.int64)
    for name in ("text", "text_1"):
        if name in table.column_names:
            total += pc.fill_null(pc.utf8_length(table[name]), 0).to_numpy()
    return total


def _label_names(table: pa.Table, known: Sequence[str], width: int) -> list[str]:
    """Return the names in the order of the probabilities, then other names that occur in the rows."""
    names = list(known) or [f"label {index}" for index in range(width)]
    for column in (table["label"], table["predicted"]):
        values = column if is_text(column.type) else pc.list_flatten(column)
        names += [name for name in values.unique().to_pylist() if name not in names]
    return names


def _add_labels(columns: _Columns, table: pa.Table, names: list[str]) -> None:
    for name in ("label", "predicted"):
        column = table[name].combine_chunks()
        if is_text(column.type):
            columns.arrays[name] = _smallest(label_ids(column, names), len(names))
        else:
            columns.arrays[f"{name}-sizes"] = _smallest(pc.list_value_length(column).to_numpy(zero_copy_only=False))
            columns.arrays[f"{name}-values"] = _smallest(label_ids(pc.list_flatten(column), names), len(names))


def _probabilities(table: pa.Table, width: int) -> np.ndarray:
    """Return the probabilities, (N, K)."""
    return np.asarray(pc.list_flatten(table["probabilities"]).to_numpy()).reshape(table.num_rows, width)


def _add_probabilities(columns: _Columns, table: pa.Table, probabilities: np.ndarray) -> None:
    """Add the probabilities as log-odds, one plane of N values per label or per rank, and the loss."""
    rows, width = probabilities.shape
    labels = columns.arrays.get("label")
    stored = width if rows * width <= MAX_PROBABILITIES else max(1, min(_MAX_KEPT, width, MAX_PROBABILITIES // rows))
    loss = table["loss"].to_numpy().astype(np.float32)
    single = labels is not None
    derived = labels is not None and stored == width and _is_cross_entropy(loss, probabilities, labels)
    probabilities = probabilities.astype(np.float64)
    rest = (probabilities.sum(axis=1, keepdims=True) if single else 1.0) - probabilities
    if stored < width:
        order = np.argpartition(-probabilities, stored - 1, axis=1)[:, :stored]
        order = np.take_along_axis(order, np.argsort(-np.take_along_axis(probabilities, order, 1), axis=1), 1)
        columns.arrays["probability-labels"] = _smallest(order.T.ravel(), width)
        probabilities, rest = np.take_along_axis(probabilities, order, 1), np.take_along_axis(rest, order, 1)
    elif single and width == 2:
        probabilities, rest = probabilities[:, 1:], rest[:, 1:]  # the other one is its complement
    steps = _LOG_ODDS_STEPS[probabilities.size > _EXACT]
    log_odds = np.log(np.maximum(probabilities, 1e-9)) - np.log(np.maximum(rest, 1e-9))
    codes = np.clip(np.rint(log_odds * steps) + _ZERO, 1, 2 * _ZERO - 1).astype(np.uint16)
    columns.arrays["probability"] = np.ascontiguousarray(codes.T).ravel()
    columns.manifest |= {"kept": stored, "logOddsSteps": steps, "logOddsZero": _ZERO}
    if not derived:
        columns.arrays["loss"] = _rounded(loss)


def _is_cross_entropy(loss: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the loss of every row is that of its stored probability, so that it need not be stored."""
    if labels.size == 0 or labels.max() >= probabilities.shape[1]:
        return False
    expected = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-9))
    return bool(np.allclose(loss, expected, rtol=_CLOSE, atol=_CLOSE))


def _add_values(columns: _Columns, table: pa.Table) -> None:
    for name, column in (("value", "label"), ("predicted-value", "predicted"), ("loss", "loss")):
        columns.arrays[name] = _rounded(table[column].to_numpy().astype(np.float32))


def _smallest(values: np.ndarray, limit: int | None = None) -> np.ndarray:
    """Return unsigned integers in as few bytes as their maximum, or `limit`, allows."""
    highest = limit if limit is not None else int(values.max(initial=0))
    return values.astype(np.min_scalar_type(highest) if highest < 2**16 else np.uint32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return floats of which the last bits are zero if there are many."""
    dropped = 23 - _MANTISSA_BITS[len(values) > _EXACT // 2]
    if not dropped:
        return values
    bits = values.view(np.uint32).astype(np.uint64) + (1 << (dropped - 1))
    return (bits >> dropped << dropped).astype(np.uint32).view(np.float32)


def _column_element(name: str, values: np.ndarray) -> Markup:
    return embedded(f"rows-{name}", _byte_planes(values))


def _byte_planes(values: np.ndarray) -> bytes:
    """Return the bytes of a little-endian array, all first bytes before all second bytes."""
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    return little.view(np.uint8).reshape(len(little), little.itemsize).T.tobytes()
