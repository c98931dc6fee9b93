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
    texts = split.texts.with_format("arrow")[:]
    labels = _as_label_names(split.labels, pa.array(label_names, pa.string()))
    expected = [*texts.columns, pa.chunked_array([labels])]
    actual = [table[name] for name in ("text", "text_1", "label") if name in table.column_names]
    return len(actual) == len(expected) and all(
        stored.cast(column.type).equals(column) for stored, column in zip(actual, expected, strict=True)
    )


def _as_values(column: pa.ChunkedArray, like: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
    """Return label names as ids (N,), lists of names as 0/1 label sets (N, C), and numbers unchanged.

    Raises:
        KeyError: a label is unknown.
    """
    if like.dtype.kind == "f":
        return np.asarray(column.to_numpy(), dtype=np.float64)
    names = pa.array(label_names, pa.string())
    ids = pc.index_in(column if like.ndim == 1 else pc.list_flatten(column), value_set=names)
    if ids.null_count:
        raise KeyError("a label is unknown")
    if like.ndim == 1:
        return np.asarray(ids.to_numpy(), dtype=np.int64)
    sets = np.zeros(like.shape, dtype=np.int64)
    sets[np.repeat(np.arange(len(sets)), pc.list_value_length(column).to_numpy()), ids.to_numpy()] = 1
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
