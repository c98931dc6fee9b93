"""The cache of rows: finetune/data/row_cache.py."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest

from finetune.data.loading import read_splits
from finetune.data.row_cache import cache_folder
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.data_files import cells, written


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence,label\na,x\nb,y\n")
    os.utime(file, (0, 0))
    first = read_splits(DataSection(train_file=str(file)))["train"].rows
    written(tmp_path, "csv", "sentence,label\na,y\nb,x\n")  # the same size as before
    os.utime(file, (0, 0))
    second = read_splits(DataSection(train_file=str(file)))["train"].rows
    assert (first["label"][:], second["label"][:]) == (["x", "y"], ["y", "x"])
    copy = written(tmp_path / "..", "CSV", file.read_bytes())
    third = read_splits(DataSection(train_file=str(copy)))["train"].rows
    assert (
        third._fingerprint == second._fingerprint != first._fingerprint
    )  # the cache of token ids depends only on the content
    assert not list(cache_folder().glob("*.part"))


def test_an_open_cache_file_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(part: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")

    file = written(tmp_path, "csv", "sentence,label\nopen,x\n")
    rows = cells(file)
    monkeypatch.setattr(Path, "replace", fail)
    assert cells(file) == rows
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*: Access is denied; free disk space"):
        cells(written(tmp_path, "csv", "sentence,label\nnever seen before,x\n"))
    assert not list(cache_folder().glob("*.part"))


def test_an_unwritable_cache_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file where a folder is needed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "occupied")
    file = written(tmp_path, "csv", "sentence,label\na,x\nb,y\n")
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*occupied.*HF_DATASETS_CACHE"):
        cells(file)
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*occupied.*HF_DATASETS_CACHE"):
        read_splits(DataSection(dataset_name=str(file.parent), validation_split=None))
