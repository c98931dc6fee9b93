from __future__ import annotations

import csv
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.label_errors import LabelError, read_label_errors, write_label_errors
from finetune.runs.run_folder import RunFolder

ERRORS = [
    LabelError("train", 7, ('a "quoted" text, with\r\nlines',), "no", "yes", 0.001, 0.998),
    LabelError("test", 1, ("=1+1",), "yes", "", 0.25, 0.5),
    LabelError("test", 3, ("x" * 200_000,), "", "a;b", 0.0, 1.0),
]


def test_the_file_has_every_row_verbatim(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_label_errors(folder) is None
    write_label_errors(folder.label_errors, ERRORS, 1)
    assert read_label_errors(folder) == ERRORS
    with folder.label_errors.open(encoding="utf-8", newline="") as file:
        line = next(csv.DictReader(file))
    assert (line["split"], line["row"], line["text"]) == ("train", "7", ERRORS[0].texts[0])
    assert (line["label"], line["suggested_label"], line["label_probability"]) == ("no", "yes", "0.001000")


def test_pairs_have_two_texts_and_no_errors_are_a_file_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    pair = LabelError("train", 2, ("first", "second"), "a", "b", 0.1, 0.9)
    for errors in ([pair], []):
        write_label_errors(folder.label_errors, errors, 2)
        assert read_label_errors(folder) == errors
    assert folder.label_errors.read_text().startswith("split,row,text,text_1,label,")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("split,row,text", "split,text"),
        ("0.250000", "1.5"),
        ("0.250000", "nan"),
        ("test,1", "test,0"),
        ("test,1", "test,one"),
        ("test,1", ",1"),
        ("0.500000", "0.5,0.5"),
        (",0.500000", ""),
        ("=1+1", '"=1+1'),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, old: str, new: str) -> None:
    folder = RunFolder(tmp_path)
    write_label_errors(folder.label_errors, ERRORS[:2], 1)
    content = folder.label_errors.read_text()
    assert old in content
    folder.label_errors.write_text(content.replace(old, new))
    with pytest.raises(DataError, match=r"label_errors\.csv .*finetune evaluate"):
        read_label_errors(folder)
