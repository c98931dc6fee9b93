"""Rows without a text or a label: finetune/data/row_checks.py."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from finetune.data.loading import read_splits
from finetune.data.row_checks import check_rows
from finetune.data.rows import RawSplit
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.data_files import cells, written


def test_rows_without_a_label_can_be_skipped(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence,label\na,x\nb,\nc,-1\n,\nd,y\n")
    raw = read_splits(DataSection(train_file=str(file), drop_unlabeled=True))["train"]
    assert (raw.rows["sentence"][:], raw.row_numbers().tolist(), raw.dropped) == (["a", "d"], [1, 5], 3)
    numbers = read_splits(DataSection(train_file=str(file), drop_unlabeled=True), "regression")["train"]
    assert (numbers.rows["label"][:], numbers.dropped) == (["x", "-1", "y"], 2)  # -1 is an ordinary number
    with pytest.raises(DataError, match=r"rows 2, 4: column 'label' is empty|row 4: column 'sentence' is empty"):
        cells(file)
    with pytest.raises(
        DataError, match=r"d\.csv has no row with a label in column 'label'; remove this split from the recipe"
    ):
        cells(written(tmp_path, "csv", "sentence,label\na,-1\nb,\n"), drop_unlabeled=True)


def test_empty_rows_are_numbered_across_chunks(tmp_path: Path) -> None:
    first_chunk = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": ["x", "y"]})
    second_chunk = datasets.Dataset.from_dict({"sentence": ["c", " ", "d"], "label": ["x", "y", "x"]})
    rows = datasets.concatenate_datasets([first_chunk, second_chunk])
    assert len(rows.data["sentence"].chunks) == 2
    with pytest.raises(DataError, match=r"here row 4: column 'sentence' is empty"):
        check_rows(RawSplit(rows, "here"), DataSection(train_rows=[{"sentence": "a", "label": "x"}]))
