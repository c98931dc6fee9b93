"""The file `predictions.parquet`: the prediction for every row of the scored splits.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.tokenization import EncodedSplit, as_arrow
from finetune.evaluation.prediction import Predictions
from finetune.runs.atomic_files import atomic_file


def predictions_table(
    split: str, encoded: EncodedSplit, predictions: Predictions, label_names: Sequence[str]
) -> pa.Table:
    """Return a table with the columns split, row, text, label, predicted, probabilities and loss.

    `row` is the row number in the file or data set, counted from 1. `probabilities` are in the order of `label_names`.
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
        }
    )


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
