"""The rows that one run predicts correctly and another does not, and their file. Imports no torch.

N rows, C classes
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.evaluation.intervals import Array
from finetune.evaluation.row_matching import row_texts
from finetune.evaluation.run_differences import compare_sides
from finetune.runs.atomic_files import atomic_file
from finetune.runs.comparison import ChangedRow

Pair = tuple[Sequence[Array], Sequence[Array]]


def changed_rows(
    name: str, table: pa.Table, predicted: Pair, references: Array, label_names: Sequence[str]
) -> list[ChangedRow]:
    """Return the rows that changed sides, in the order of the table.

    Args:
        name: of the other run.
        table: the rows of a split, sorted by row number.
        predicted: by the runs of the first and of the other candidate: class ids (N,) or 0/1 label sets (N, C).
        references: the labels in the same form.
    """
    sides = compare_sides(*predicted, references)
    splits, numbers, texts = table["split"].to_pylist(), table["row"].to_pylist(), row_texts(table)
    return [
        ChangedRow(
            run=name,
            split=splits[index],
            row=numbers[index],
            text=texts[index][0],
            text_1=texts[index][1] if len(texts[index]) > 1 else "",
            label=_names(references[index], label_names),
            first_predicted=_most_frequent([model[index] for model in predicted[0]], label_names),
            predicted=_most_frequent([model[index] for model in predicted[1]], label_names),
            first_right=float(sides.first[index]),
            right=float(sides.second[index]),
            change="gained" if sides.gained[index] else "lost",
        )
        for index in np.flatnonzero(sides.gained | sides.lost)
    ]


def _most_frequent(predictions: Sequence[Array], label_names: Sequence[str]) -> str:
    """Return the prediction of most seeds; of several equally frequent ones, that of the first seed."""
    names = [_names(prediction, label_names) for prediction in predictions]
    return max(names, key=names.count)


def _names(label: Array, label_names: Sequence[str]) -> str:
    """Return a class id as its name, or a 0/1 label set (C,) as names with commas."""
    if np.ndim(label) == 0:
        return label_names[int(label)]
    return ", ".join(label_names[int(index)] for index in np.flatnonzero(label)) or "none"


def write_changed_rows(path: Path, rows: Sequence[ChangedRow]) -> None:
    """Write the rows as CSV; the column `text_1` is only there for pairs of texts.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    columns = [name for name in ChangedRow.__dataclass_fields__ if name != "text_1" or any(row.text_1 for row in rows)]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(row, name) for name in columns] for row in rows)
