from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.paths import absolute_path, new_dir_problem, path_problem


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("a\0b", "holds a NUL character"),
        ("~nosuchuser/x", "names the home folder of a user that does not exist"),
        ("x" * 300, "is too long for the file system"),
        ("a/" + "x" * 300 + "/b", "is too long for the file system"),
        ("/".join(["x" * 200] * 25), "is too long for the file system"),
        ("a\ud800b", "holds characters that no path can"),
        ("loop/x", "symbolic links that point at one another"),
        ("loop", "symbolic links that point at one another"),
    ],
)
def test_a_path_that_none_can_be_is_named(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for fault in (path_problem(path), new_dir_problem(path)):
        assert reason in (fault or "")


def test_a_path_leaves_room_for_what_is_written_below_it(tmp_path: Path) -> None:
    most = os.pathconf(tmp_path, "PC_PATH_MAX")
    long = str(tmp_path)
    while len(long) < most - 100:
        long += "/" + "x" * min(100, most - 51 - len(long))
    assert most - 100 <= len(long) < most - 1  # the path alone would do
    assert "is too long" in (path_problem(long) or "")


@pytest.mark.parametrize("path", ["a", "a/b", "~/a", "file", "file/below", "folder", "", "\udce9"])
def test_other_paths_are_none_of_its_business(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    assert path_problem(Path(path)) is None  # Path("") is "."; "\udce9" is what Python makes of a name in latin-1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("dangling").symlink_to("nowhere")
    assert new_dir_problem("file") == "is a file; name a folder"
    for path in ("file/below/it", "dangling/below"):
        assert "cannot be made, since" in (new_dir_problem(path) or "")
    for path in ("folder", "folder/new/newer", "new"):
        assert new_dir_problem(path) is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert new_dir_problem("new") == f"cannot be written, since {tmp_path} is read-only for you; name another"


def test_a_path_is_absolute_and_knows_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_path("~/a") == tmp_path / "a"
    assert absolute_path("a") == Path.cwd() / "a"
