from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from finetune.errors import TrainingError
from finetune.runs.atomic_files import find_damage, fsync_path, mark_complete, report_write_errors
from finetune.runs.json_files import write_text
from tests.support import ROOT
from tests.support.helpers import HANG_SECONDS


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as tokenizers raises it
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_what_cannot_be_written_is_named(error: Exception) -> None:
    match = r"cannot write a/b: .*(No space left|unexpected pos).*; make room or name another folder"
    with pytest.raises(TrainingError, match=match), report_write_errors(Path("a/b")):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), report_write_errors(Path("a")):
        raise RuntimeError("shapes do not fit")


def test_on_windows_files_are_flushed_through_a_handle_that_may_write_and_folders_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("text")
    opened: list[tuple[Path, int]] = []
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append((path, flags)) or plain(path, flags))
    for platform, expected in (
        ("win32", [(tmp_path / "a", os.O_RDWR)]),
        ("linux", [(tmp_path / "a", os.O_RDONLY), (tmp_path, os.O_RDONLY)]),
    ):
        opened.clear()
        monkeypatch.setattr(sys, "platform", platform)
        fsync_path(tmp_path / "a")
        fsync_path(tmp_path)
        assert opened == expected


def test_a_seal_tells_kind_and_version(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    assert find_damage(tmp_path, "thing", 1) == "it has no COMPLETE mark, so it was never finished"
    mark_complete(tmp_path, "thing", 1)
    assert find_damage(tmp_path, "thing", 1) is None
    assert find_damage(tmp_path, "other", 1) == "it is a thing of version 1, and a other of version 1 is asked for"
    (tmp_path / "a").write_text("tent")
    assert find_damage(tmp_path, "thing", 1) == "a was altered: its checksum is another"
    assert find_damage(tmp_path / "nowhere", "thing", 1) == "there is no such folder"


# A checkpoint of 100 kB is there; then no file may pass 200 kB (every writer then fails with "File too large"), or
# the disk is full; the next checkpoint is of 800 kB.
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


@pytest.mark.parametrize("how", ["limit", "full disk"])
def test_a_disk_that_is_full_costs_nothing_that_is_there(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", SAVES, str(tmp_path), how.split()[0]]
    if how == "full disk":
        mount = f'mount -t tmpfs -o size=600k none {tmp_path} && exec "$@"'
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command]
        allowed = [*command[:6], f"mount -t tmpfs none {tmp_path}"]
        if not shutil.which("unshare") or subprocess.run(allowed, capture_output=True, check=False).returncode:
            pytest.skip("a disk of its own for one process needs user namespaces, which are off here")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    reason = "No space left on device" if how == "full disk" else "File too large"
    for line, name in zip(said, ("step-000002", "scores.json", "history.jsonl"), strict=False):
        assert line.startswith(f"cannot write {tmp_path / name}: ")
        assert reason in line
    assert said[3] == f"{tmp_path / 'step-000001'} ()"
    assert "step-000002" not in said[4]
    assert ".tmp" not in said[4]


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_text("1")
    mark_complete(tmp_path, "checkpoint", 1)

    def bad_sector(file: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("finetune.runs.atomic_files._checksum", bad_sector)
    assert find_damage(tmp_path, "checkpoint", 1) == "weights cannot be read: Input/output error"


def test_a_link_beside_a_file_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / ".report.html.tmp").symlink_to(mine)
    write_text(tmp_path / "report.html", "new")
    assert (mine.read_text(), (tmp_path / "report.html").read_text()) == ("mine", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "report.html"]
