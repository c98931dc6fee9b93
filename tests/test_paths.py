from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.paths import absolute_path, new_dir_problem, path_problem


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("a\0b", "contains a NUL character"),
        ("~nosuchuser/x", "names the home folder of a user that does not exist"),
        ("x" * 300, "is too long for the file system"),
        ("a/" + "x" * 300 + "/b", "is too long for the file system"),
        ("/".join(["x" * 200] * 25), "is too long for the file system"),
        ("a\ud800b", "contains characters that no path can"),
        ("loop/x", "symbolic links that point at each other"),
        ("loop", "symbolic links that point at each other"),
    ],
)
def test_an_unusable_path_is_reported(path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for problem in (path_problem(path), new_dir_problem(path)):
        assert reason in (problem or "")


def test_a_path_too_long_for_the_files_of_a_run_is_reported(tmp_path: Path) -> None:
    max_length = os.pathconf(tmp_path, "PC_PATH_MAX")
    long_path = str(tmp_path)
    while len(long_path) < max_length - 100:
        long_path += "/" + "x" * min(100, max_length - 51 - len(long_path))
    assert max_length - 100 <= len(long_path) < max_length - 1  # the path alone is short enough
    assert "is too long" in (path_problem(long_path) or "")


@pytest.mark.parametrize("path", ["a", "a/b", "~/a", "file", "file/below", "folder", "", "\udce9"])
def test_usable_paths_have_no_problem(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    assert path_problem(Path(path)) is None  # Path("") is "."; Python decodes a byte of a latin-1 name to "\udce9"


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("dangling").symlink_to("nowhere")
    assert new_dir_problem("file") == "is a file; name a folder"
    for path in ("file/below/it", "dangling/below"):
        assert "cannot be created, because" in (new_dir_problem(path) or "")
    for path in ("folder", "folder/new/newer", "new"):
        assert new_dir_problem(path) is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (
        new_dir_problem("new") == f"cannot be written, because you have no write permission in {tmp_path}; name another"
    )


def test_absolute_path_expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_path("~/a") == tmp_path / "a"
    assert absolute_path("a") == Path.cwd() / "a"
