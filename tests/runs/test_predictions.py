from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.errors import DataError
from finetune.runs.predictions import worst_predictions
from finetune.runs.run_folder import RunFolder

ROWS = {
    "split": ["test"] * 3, "row": [1, 2, 3], "text": ["a", "b", "c"], "label": ["no", "no", "no"],
    "predicted": ["no", "yes", "yes"], "probabilities": [[0.75, 0.25], [0.25, 0.75], [0.125, 0.875]],
    "loss": [0.1, 0.2, 0.3],
}  # fmt: skip


def test_wrong_predictions_are_sorted_by_loss(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    pq.write_table(pa.table(ROWS), folder.predictions)
    rows = worst_predictions(folder, 10)
    assert [(row.row, row.label, row.predicted, row.confidence, row.loss) for row in rows] == [
        (3, "no", "yes", 0.875, 0.3), (2, "no", "yes", 0.75, 0.2),
    ]  # fmt: skip
    assert [row.row for row in worst_predictions(folder, 1)] == [3]


def test_both_texts_of_a_pair_and_all_labels_are_shown(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    labels = {"text_1": ["x", "y", "z"], "label": [["no", "yes"], [], ["no"]], "predicted": [["no"], ["yes"], ["no"]]}
    pq.write_table(pa.table({**ROWS, **labels}), folder.predictions)
    rows = worst_predictions(folder, 10)
    assert [(row.text, row.label, row.predicted, row.confidence) for row in rows] == [
        ("b ⏐ y", "none", "yes", None), ("a ⏐ x", "no, yes", "no", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": [1, 2, 3]}, "column label is of type int64"),
        ({"label": [0.5, 0.5, 0.5]}, "labels and predictions are of different types"),
        ({"loss": [0.1, None, 0.3]}, "column loss has empty cells"),
        ({"probabilities": [[0.5], [], [0.5]]}, "a row has no probabilities"),
    ],
)
def test_other_tables_are_damage(tmp_path: Path, changes: dict[str, list[object]], reason: str) -> None:
    folder = RunFolder(tmp_path)
    pq.write_table(pa.table({**ROWS, **changes}), folder.predictions)
    with pytest.raises(DataError, match=reason):
        worst_predictions(folder, 10)
    pq.write_table(pa.table({name: values for name, values in ROWS.items() if name != "text"}), folder.predictions)
    with pytest.raises(DataError, match="it has no column text"):
        worst_predictions(folder, 10)
