from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import TrainingError
from finetune.runs import locks
from finetune.runs.locks import LOCK, Holder, locked_file, locked_folder

# Takes the lock when it reads a line, prints "held", and holds the lock until it reads the next line.
CONTENDER = """
import sys
from pathlib import Path
from finetune.errors import TrainingError
from finetune.runs.locks import locked_folder
print("ready", flush=True)
sys.stdin.readline()
try:
    with locked_folder(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except TrainingError as error:
    print(error, flush=True)
"""


def test_a_second_process_gets_the_name_of_the_holder_and_no_file_remains(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with locked_folder(folder):
        holder = Holder(**json.loads((folder / LOCK).read_text()))
        assert holder.pid == os.getpid()
        message = rf"runs/a is being written by process {os.getpid()} on {holder.host} since 2.*; wait until it ends"
        with pytest.raises(TrainingError, match=message), locked_folder(folder):
            pytest.fail("two processes hold the lock")
        with locked_folder(tmp_path / "runs" / "b"):  # another folder is another lock
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_kept(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "recipe.yaml").write_text("x")
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("content", ["", "{", json.dumps({"pid": 1, "host": "here", "command": "train", "since": "x"})])
def test_the_lock_file_of_a_killed_process_blocks_no_other_process(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with locked_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_simultaneous_processes_gets_the_lock_and_killing_it_releases_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in started if process.stdout]
        holders = [process for process, line in zip(started, lines, strict=True) if line == "held\n"]
        assert len(holders) == 1, lines
        for line in lines:
            assert line == "held\n" or f"is being written by process {holders[0].pid} on " in line
        holders[0].kill()
        holders[0].wait()
        assert (folder / LOCK).is_file()
        with locked_folder(folder):
            pass
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_disk_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_lock", fail)
    with locked_folder(tmp_path):
        assert "is on a disk without file locks: no other process may write there" in capsys.readouterr().err


def test_a_read_only_folder_is_rejected_unless_it_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:  # real permissions do not stop a test that runs as root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(locks.os, "open", fail)
    with pytest.raises(TrainingError, match=r"cannot write .*: Permission denied"), locked_folder(tmp_path):
        pytest.fail("the lock was taken")
    entered = []
    with locked_folder(tmp_path, read_only_ok=True):
        entered.append(1)
    assert entered == [1]


def test_the_lock_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    target = tmp_path / "new" / "merged"
    file = target.with_name(".merged.lock")
    with (
        locked_file(file, target),
        pytest.raises(TrainingError, match="new/merged is being written"),
        locked_file(file, target),
    ):
        pytest.fail("two processes hold the lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_lock_file_that_is_a_symbolic_link_is_not_followed(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "elsewhere" / "mine.txt"
    if exists:
        target.parent.mkdir()
        target.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).symlink_to(target)
    with pytest.raises(TrainingError, match=r"cannot write .*run: "), locked_folder(run):
        pytest.fail("the lock was taken")
    assert not exists or target.read_text() == "mine"
    assert target.exists() == exists


def test_a_folder_that_accepts_no_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("finetune.runs.locks.os.open", refuse)
    with pytest.raises(TrainingError, match=r"cannot write .*: No such file or directory"), locked_folder(tmp_path):
        pass
