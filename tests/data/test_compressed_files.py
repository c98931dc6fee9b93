"""Compressed data files, and damaged ones: finetune/data/compressed_files.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from tests.support.data_files import cells
from tests.support.written_rows import COMPRESSED, write_rows

ROWS = [{"sentence": f"text {n}", "label": "xy"[n % 2]} for n in range(2000)]
PACKED = [packed for packed in COMPRESSED if packed]


@pytest.mark.parametrize("kind", ["csv", "json list", "parquet", "arrow stream"])
@pytest.mark.parametrize("packed", PACKED)
def test_a_truncated_archive_is_one_message(tmp_path: Path, packed: str, kind: str) -> None:
    file = write_rows(tmp_path, ROWS, kind, packed)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"the \w+ archive .*d\.\w+\{packed} is damaged or incomplete .*; create or"):
        cells(file)


@pytest.mark.parametrize("packed", PACKED)
def test_a_damaged_archive_is_one_message(tmp_path: Path, packed: str) -> None:
    file = write_rows(tmp_path, ROWS, "csv", packed)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged or incomplete|is not UTF-8"):
        cells(file)


@pytest.mark.parametrize("packed", PACKED)
def test_an_ending_that_does_not_fit_is_one_message(tmp_path: Path, packed: str) -> None:
    plain = tmp_path / f"d.csv{packed}"
    plain.write_text("sentence,label\na,x\n")
    with pytest.raises(DataError, match=rf"ends in \{packed}, but its first bytes .*; rename it to d\.csv$"):
        cells(plain)
    renamed = tmp_path / "other.csv"
    write_rows(tmp_path, ROWS, "csv", packed).rename(renamed)
    with pytest.raises(DataError, match=rf"ends in \.csv, .* archive; rename it to other\.csv\{packed}"):
        cells(renamed)
    inside = tmp_path / f"d.jsonl{packed}"
    write_rows(tmp_path, ROWS, "parquet", packed).rename(inside)
    with pytest.raises(DataError, match=rf"ends in \.jsonl\{packed}, but .* a parquet file; rename it to \.parquet"):
        cells(inside)


@pytest.mark.parametrize("packed", PACKED)
def test_an_archive_without_content_is_one_message(tmp_path: Path, packed: str) -> None:
    file = tmp_path / f"d.csv{packed}"
    file.write_bytes(COMPRESSED[packed](b""))
    with pytest.raises(DataError, match=r"is empty after unpacking; add rows"):
        cells(file)
