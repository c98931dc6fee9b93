"""The names of data files, and the files that an entry stands for: finetune/recipe/data_files.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.recipe.data_files import compression, describe_files, expand_files, file_format, is_data_file


@pytest.mark.parametrize(
    ("name", "kind", "packed"),
    [
        ("a.csv", "csv", None),
        ("a.CSV.GZ", "csv", "gzip"),
        ("a.b.jsonl.zst", "jsonl", "zstd"),
        ("a.feather", "arrow", None),
        ("a.parquet.bz2", "parquet", "bzip2"),
        ("a.xz", "", "xz"),
        ("a.xls", "xls", None),
    ],
)
def test_the_endings_decide(name: str, kind: str, packed: str | None) -> None:
    assert (file_format(Path(name)), compression(Path(name))) == (kind, packed)
    assert is_data_file(Path(name)) is (kind not in ("", "xls"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "c.csv.gz", ".hidden.csv", "README.md", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "d.csv").touch()
    (tmp_path / "odd[1].csv").touch()
    return tmp_path


def test_entries_stand_for_files(folder: Path) -> None:
    def names(*entries: str) -> list[str]:
        return [file.name for file in expand_files([str(folder / entry) for entry in entries])]

    assert names("b.csv", "a.csv") == ["b.csv", "a.csv"]
    assert names("*.csv") == ["a.csv", "b.csv", "odd[1].csv"]
    assert names("**/d.csv") == ["d.csv"]
    assert names("odd[1].csv") == ["odd[1].csv"]
    assert names("") == ["a.csv", "b.csv", "c.csv.gz", "odd[1].csv"]
    assert names("missing.csv") == ["missing.csv"]  # is reported where it is read


def test_entries_without_files_are_errors(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches the pattern '.*/\*\.parquet'; correct it"):
        expand_files([str(folder / "*.parquet")])
    with pytest.raises(DataError, match=r"a\.csv is given twice; remove one"):
        expand_files([str(folder / "a.csv"), str(folder / "[ab].csv")])
    with pytest.raises(DataError, match=r"the folder .*deep has no data files; .* end in \.csv"):
        expand_files([str(folder / "deep")])
    (folder / "test.csv").touch()
    with pytest.raises(DataError, match=r"has files of several splits, such as test\.csv; give it as data\.dataset_n"):
        expand_files([str(folder)])
    (folder / "x.jsonl").touch()
    with pytest.raises(DataError, match=r"has files of several formats \(csv, jsonl\); name the files, or .*\*\.csv"):
        expand_files([str(folder)])
    (folder / "dataset_info.json").touch()
    with pytest.raises(DataError, match=r"was written by `datasets`; give it as data\.dataset_name"):
        expand_files([str(folder)])


def test_many_files_are_described_by_the_first() -> None:
    files = [Path(name) for name in "abcd"]
    assert (describe_files(files[:2]), describe_files(files)) == ("a, b", "a and 3 other files")
