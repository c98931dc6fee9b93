"""Rows of several files: finetune/data/file_rows.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from finetune.data.first_rows import check_first_rows
from finetune.data.loading import read_splits
from finetune.data.rows import RawSplit
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.written_rows import write_rows

ROWS = [{"sentence": f"text {n}", "label": "xy"[n % 2]} for n in range(6)]


def train(files: Any, **keys: Any) -> RawSplit:
    return read_splits(DataSection(train_file=files, **keys))["train"]


def texts(raw: RawSplit) -> list[str]:
    return list(raw.column("sentence").to_pylist())


def test_files_a_pattern_and_a_folder_are_the_same_rows(tmp_path: Path) -> None:
    names = [str(write_rows(tmp_path, ROWS[n : n + 2], "csv", name=name)) for n, name in ((0, "a"), (2, "b"), (4, "c"))]
    (tmp_path / "notes.txt").write_text("not data")
    expected = [row["sentence"] for row in ROWS]
    for files in (names, str(tmp_path / "*.csv"), str(tmp_path), [names[0], str(tmp_path / "[bc].csv")]):
        assert texts(train(files)) == expected
    mixed = [names[0], str(write_rows(tmp_path, ROWS[2:], "parquet", ".gz"))]
    assert texts(train(mixed)) == expected


def test_messages_name_the_file_and_its_row(tmp_path: Path) -> None:
    first, second = (write_rows(tmp_path, ROWS, "csv", name=name) for name in "ab")
    second.write_text("sentence,label\nx,x\n,y\nz,\n")
    data = DataSection(train_file=[str(first), str(second)], validation_size=None)
    for read in (read_splits, lambda data: check_first_rows(data, "single_label_classification", None)):
        with pytest.raises(DataError, match=rf"^{second} row 2: column 'sentence' is empty"):
            read(data)
    raw = RawSplit(datasets.Dataset.from_dict({"a": range(9)}), "both", files=(("a", 0), ("b", 3), ("c", 3)))
    assert raw.describe_rows([2, 3, 8]) == "a row 3, c rows 1, 6"
    assert raw.select([5, 0]).describe_rows([0, 1]) == "c row 3, a row 1"
    assert raw.describe_rows(range(8)) == "a rows 1, 2, 3, c rows 1, 2 and 3 more"
    second.write_text("text,label\nx,x\n")
    with pytest.raises(DataError, match=rf"^{second} has no column 'sentence'"):
        train([str(first), str(second)])


def test_class_names_must_be_the_same_in_all_files(tmp_path: Path) -> None:
    for name, classes in (("a", ["no", "yes"]), ("b", ["no", "yes"]), ("c", ["yes", "no"])):
        features = datasets.Features(
            {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)}
        )
        rows = datasets.Dataset.from_dict({"sentence": ["s"], "label": [1]}, features=features)
        rows.to_parquet(tmp_path / f"{name}.parquet")
    both = train(str(tmp_path / "[ab].parquet"))
    assert (both.class_names, both.column("label").to_pylist()) == (["no", "yes"], ["yes", "yes"])
    with pytest.raises(DataError, match=r"c\.parquet and .*a\.parquet declare different classes for column 'label'"):
        train(str(tmp_path))
