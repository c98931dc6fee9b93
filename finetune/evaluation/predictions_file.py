"""The file `predictions.parquet`: the prediction for every row of the scored splits.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finetune.data.tokenization import EncodedSplit, as_arrow
from finetune.errors import DataError
from finetune.evaluation.prediction import Predictions
from finetune.runs.atomic_files import atomic_file
from finetune.runs.predictions import read_predictions
from finetune.runs.run_folder import RunFolder

BASELINE_PREFIX = "baseline_"


def predictions_table(
    split: str,
    encoded: EncodedSplit,
    predictions: Predictions,
    label_names: Sequence[str],
    baselines: Mapping[str, np.ndarray] | None = None,
) -> pa.Table:
    """Return a table with the columns split, row, text, label, predicted, probabilities and loss.

    `row` is the row number in the file or data set, counted from 1. `probabilities` are in the order of `label_names`.

    Args:
        baselines: by name, the predicted labels of baselines, which are in columns named `baseline_NAME`.
    """
    names = pa.array(label_names, pa.string())
    texts = encoded.texts.with_format("arrow")[:].combine_chunks()
    return pa.table(
        {
            "split": pa.repeat(split, len(encoded)),
            "row": pa.array(encoded.numbers),
            **{f"text_{index}" if index else "text": column for index, column in enumerate(texts.columns)},
            "label": _as_label_names(predictions.labels, names),
            "predicted": _as_label_names(predictions.predicted_labels(), names),
            "probabilities": as_arrow(predictions.probabilities()),
            "loss": pa.array(predictions.losses.numpy()),
            **{BASELINE_PREFIX + name: _as_label_names(values, names) for name, values in (baselines or {}).items()},
        }
    )


def read_baseline_predictions(
    folder: RunFolder, splits: Mapping[str, EncodedSplit], label_names: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the stored predictions of baselines, by baseline and split: class ids, 0/1 label sets or values.

    Nothing is returned if the file is missing, damaged, or of other rows than those of `splits`.
    """
    try:
        table = read_predictions(folder)
        stored = {split: table.filter(pc.equal(table["split"], split)) for split in splits}
        if not all(_has_rows(stored[name], split, label_names) for name, split in splits.items()):
            return {}
        columns = [name for name in table.column_names if name.startswith(BASELINE_PREFIX)]
        return {
            column.removeprefix(BASELINE_PREFIX): {
                name: _as_values(stored[name][column], split.labels, label_names) for name, split in splits.items()
            }
            for column in columns
        }
    except (DataError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}


def _has_rows(table: pa.Table, split: EncodedSplit, label_names: Sequence[str]) -> bool:
    """Return whether a table of predictions has the texts and labels of a split."""
    if table.num_rows != len(split):
        return False
    texts = split.texts.with_format("arrow")[:].combine_chunks()
    expected = [column.to_pylist() for column in texts.columns]
    actual = [table[name].to_pylist() for name in ("text", "text_1") if name in table.column_names]
    labels = _as_label_names(split.labels, pa.array(label_names, pa.string()))
    return actual == expected and table["label"].to_pylist() == labels.to_pylist()


def _as_values(column: pa.ChunkedArray, like: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
    """Return label names as ids (N,), lists of names as 0/1 label sets (N, C), and numbers unchanged.

    Raises:
        KeyError: a label is unknown.
    """
    ids = {name: index for index, name in enumerate(label_names)}
    if like.dtype.kind == "f":
        return np.asarray(column.to_pylist(), dtype=np.float64)
    if like.ndim == 1:
        return np.array([ids[name] for name in column.to_pylist()], dtype=np.int64)
    sets = np.zeros(like.shape, dtype=np.int64)
    for row, names in enumerate(column.to_pylist()):
        sets[row, [ids[name] for name in names]] = 1
    return sets


def _as_label_names(values: np.ndarray, names: pa.StringArray) -> pa.Array:
    """Return class ids (N,) as label names, 0/1 label sets (N, C) as lists of names, and other values unchanged."""
    if values.dtype.kind == "f":
        return pa.array(values)
    if values.ndim == 1:
        return names.take(pa.array(values))
    ends = np.concatenate([[0], values.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), names.take(pa.array(values.nonzero()[1])))


def write_predictions(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write the tables of all splits to one parquet file, first to a temporary file, then renamed.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with atomic_file(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)
