from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
from safetensors import SafetensorError

from finetune.errors import TrainingError
from finetune.runs.atomic_files import (
    atomic_replace_dir,
    fsync_path,
    is_about_the_disk,
    report_write_errors,
    write_text,
)
from finetune.runs.new_dirs import atomic_new_dir
from tests.support import ROOT
from tests.support.helpers import HANG_SECONDS


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as tokenizers raises it
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("basic_ios::clear: iostream error"),  # also torch.save
    ],
)
def test_a_write_error_names_the_path(error: Exception) -> None:
    match = r"cannot write a/b: .*(No space left|unexpected pos|iostream error).*; free disk space or name another"
    with pytest.raises(TrainingError, match=match), report_write_errors(Path("a/b")):
        raise error


def test_other_errors_are_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), report_write_errors(Path("a")):
        raise RuntimeError("shapes do not fit")


def caused_by(cause: BaseException) -> TrainingError:
    error = TrainingError("cannot write a")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), True),  # the log of a trial
        (caused_by(OSError(28, "No space left on device")), True),
        (caused_by(caused_by(RuntimeError("basic_ios::clear: iostream error"))), True),
        (caused_by(SafetensorError("I/O error: No space left on device (os error 28)")), True),
        (caused_by(SafetensorError("No such file or directory (os error 2)")), False),
        (caused_by(FileNotFoundError(2, "No such file or directory")), False),
        (caused_by(RuntimeError("shapes do not fit")), False),
        (TrainingError("the loss is not finite"), False),
    ],
)
def test_an_error_of_the_disk_is_recognized_by_its_cause(error: BaseException, expected: bool) -> None:
    assert is_about_the_disk(error) == expected


def test_on_windows_files_are_flushed_through_a_writable_handle_and_folders_are_not_flushed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("text")
    opened: list[tuple[Path, int]] = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append((path, flags)) or real_open(path, flags))
    for platform, expected in (
        ("win32", [(tmp_path / "a", os.O_RDWR)]),
        ("linux", [(tmp_path / "a", os.O_RDONLY), (tmp_path, os.O_RDONLY)]),
    ):
        opened.clear()
        monkeypatch.setattr(sys, "platform", platform)
        fsync_path(tmp_path / "a")
        fsync_path(tmp_path)
        assert opened == expected


# A checkpoint of 100 kB exists. Then either no file may exceed 200 kB (every write fails with "File too large"), or the
# disk is full. The next checkpoint has 800 kB.
SAVES = """
import resource, signal, sys, torch
from pathlib import Path
from accelerate import Accelerator
from finetune.training.checkpoints import find_checkpoint, save_checkpoint
from finetune.errors import TrainingError
from finetune.runs.json_files import append_line, write_json
from finetune.training.snapshot import Snapshot, trained_weights
from finetune.training.state import TrainState, random_state

root = Path(sys.argv[1])

def save(step, width):
    weights = trained_weights(torch.nn.Linear(width, width))
    snapshot = Snapshot(TrainState(step=step), weights, None, torch.zeros(0), {}, [random_state()], {})
    save_checkpoint(root, snapshot, keep=1, accelerator=Accelerator(cpu=True))

save(1, 150)
if sys.argv[2] == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
writes = (
    lambda: save(2, 450),
    lambda: write_json(root / "scores.json", ["a" * 900_000]),
    lambda: append_line(root / "history.jsonl", {"a": "a" * 900_000}),
)
for write in writes:
    try:
        write()
    except TrainingError as error:
        print(error)
print(find_checkpoint("auto", root).folder, find_checkpoint("auto", root).skipped)
print(sorted(path.name for path in root.iterdir()))
"""


@pytest.mark.parametrize("limit", ["limit", "full disk"])
def test_a_full_disk_loses_no_existing_file(tmp_path: Path, limit: str) -> None:
    command = [sys.executable, "-c", SAVES, str(tmp_path), limit.split()[0]]
    if limit == "full disk":
        mount = f'mount -t tmpfs -o size=600k none {tmp_path} && exec "$@"'
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command]
        mount_command = [*command[:6], f"mount -t tmpfs none {tmp_path}"]
        if not shutil.which("unshare") or subprocess.run(mount_command, capture_output=True, check=False).returncode:
            pytest.skip("a private disk for one process needs user namespaces, which are disabled here")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    output = done.stdout.splitlines()
    reason = "No space left on device" if limit == "full disk" else "File too large"
    for line, name in zip(output, ("step-000002", "scores.json", "history.jsonl"), strict=False):
        assert line.startswith(f"cannot write {tmp_path / name}: ")
        assert reason in line
    assert output[3] == f"{tmp_path / 'step-000001'} ()"
    assert "step-000002" not in output[4]
    assert ".tmp" not in output[4]


def test_a_symbolic_link_with_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / ".report.html.tmp").symlink_to(mine)
    write_text(tmp_path / "report.html", "new")
    assert (mine.read_text(), (tmp_path / "report.html").read_text()) == ("mine", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "report.html"]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_replace_dir(tmp_path / "model") as temporary:
            (temporary / "weights").write_text(text)
    assert files(tmp_path) == {"model/weights": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("interrupted_in", ["writing", "rename", "replace"])
def test_an_interrupted_replacement_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_in: str
) -> None:
    with atomic_replace_dir(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    rename = Path.rename
    with suppress(KeyboardInterrupt), atomic_replace_dir(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("new")
        if interrupted_in == "writing":
            interrupt()
        elif interrupted_in == "replace":
            monkeypatch.setattr(Path, "replace", interrupt)
        else:
            monkeypatch.setattr(Path, "rename", lambda p, to: interrupt() if p.name == "model" else rename(p, to))
    assert files(tmp_path) == {"model/weights": "old"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
@pytest.mark.parametrize("new_dir", [atomic_replace_dir, atomic_new_dir])
def test_files_have_the_permissions_of_any_new_file(
    new_dir: Callable[[Path], AbstractContextManager[Path]], umask: int, expected: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        with new_dir(tmp_path / "model") as temporary:
            (temporary / "inside").mkdir()
            for file in (temporary / "weights", temporary / "inside" / "weights"):
                file.touch(mode=0o600)  # as safetensors does
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert [file.stat().st_mode & 0o777 for file in files] == [expected] * 2
