"""The data formats, and files whose format differs from their extension: finetune/data/file_formats.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from tests.support.data_files import cells, parquet, written

SIGNATURES: list[tuple[str, bytes, str]] = [
    ("csv", b"PAR1....PAR1", "a parquet file; rename it to .parquet"),
    ("csv", b"PK\x03\x04....[Content_Types].xml", "an Excel workbook; export the sheet as csv"),
    ("jsonl", b"PK\x03\x04....data.jsonl", "a zip archive; unpack it"),
    ("csv", b"\x1f\x8b\x08rest", r"a gzip archive; rename it to d\.csv\.gz"),
    ("parquet", b"\x1f\x8b\x08rest", r"a gzip archive; rename it to d\.parquet\.gz"),
    ("csv", "sentence,label\na,x\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    ("csv", "sentence,label\na,x\n".encode("utf-16-le"), "UTF-16 text or a binary file"),
    ("tsv", "sentence\tlabel\na\tx\n".encode("utf-32"), "UTF-32 text; save it as UTF-8"),
    ("csv", b"<!DOCTYPE html><html>", "a web page or XML"),
    ("json", b"\n <html><body>", "a web page or XML"),
    ("csv", b'{"sentence": "a", "label": "x"}\n', "JSON; rename it to .jsonl"),
    ("jsonl", b"sentence,label\na,x\n", "csv; rename it to .csv"),
    ("json", b"sentence\tlabel\na\tx\n", "tab-separated text; rename it to .tsv"),
    ("parquet", b"sentence,label\na,x\n", "csv; rename it to .csv"),
    ("parquet", b'[{"sentence": "a"}]', "JSON; rename it to .jsonl"),
    ("csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook"),
    ("parquet", b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer .*run `git lfs pull`"),
]


@pytest.mark.parametrize(("ending", "content", "description"), SIGNATURES)
def test_a_file_of_another_format_is_reported(tmp_path: Path, ending: str, content: bytes, description: str) -> None:
    with pytest.raises(
        DataError,
        match=rf"the name of .*d\.{ending} ends in \.{ending}, but its first bytes are those of {description}",
    ):
        cells(written(tmp_path, ending, content))


def test_an_uppercase_extension_is_accepted(tmp_path: Path) -> None:
    assert cells(written(tmp_path, "CSV", "sentence,label\na,x\n")) == [("a", "x")]


def test_an_unreadable_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"missing\.csv cannot be read: No such file"):
        cells(tmp_path / "missing.csv")
    with pytest.raises(DataError, match=r"d\.parquet cannot be read as parquet"):
        cells(written(tmp_path, "parquet", parquet(tmp_path).read_bytes()[:-40]))
