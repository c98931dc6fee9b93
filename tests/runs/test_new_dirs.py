from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError, TrainingError
from finetune.runs.new_dirs import atomic_new_dir, check_dir_is_free, lock_new_dir


def test_a_new_folder_appears_complete_and_replaces_an_empty_one(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    target.mkdir()
    with atomic_new_dir(target) as temporary:
        (temporary / "weights").write_text("new")
        assert list(target.iterdir()) == []
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=r"cannot write .*merged: No such file"),
        atomic_new_dir(tmp_path / "merged") as temporary,
    ):
        (temporary / "missing" / "weights").write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_a_file_and_a_symbolic_link_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "full/file", "link"):
        with pytest.raises(DataError, match="already exists and is not empty; name another folder with --output"):
            check_dir_is_free(tmp_path / name)
    with pytest.raises(DataError, match="cannot be written: Not a directory; name another folder with --output"):
        check_dir_is_free(tmp_path / "full" / "file" / "below")


def test_only_one_process_creates_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    with (
        lock_new_dir(target),
        pytest.raises(TrainingError, match="merged is being written by process"),
        lock_new_dir(target),
    ):
        pytest.fail("two processes hold the lock")
    assert list(tmp_path.iterdir()) == []
