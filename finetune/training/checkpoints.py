"""Checkpoints on disk: write them atomically, find the one to resume from, delete old ones.

A checkpoint is one folder, `step-000120`. It is written to a temporary folder, marked complete with checksums, and
renamed. A checkpoint that is unfinished, altered, or of another run is never loaded.

    weights.safetensors   the trainable parameters
    best.safetensors      the same at the best evaluation so far, if that was an earlier step
    optimizer.pt          optimizer, scheduler, loss scaler, losses not logged yet, random state of each process
    state.json            counters, see state.py
    run.json              the run fingerprint, see resume_check.py
    COMPLETE              checksums of these files, see finetune/runs/completion_marker.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from finetune.distributed import on_main_process
from finetune.errors import TrainingError
from finetune.runs.atomic_files import fsync_path, report_write_errors, share_files
from finetune.runs.completion_marker import COMPLETE_MARKER, find_damage, mark_complete
from finetune.training.resume_check import check_fingerprint
from finetune.training.snapshot import Snapshot
from finetune.training.state import TrainState

_FORMAT, _VERSION = "finetune checkpoint", 3
_PREFIX = "step-"
_FIX = "name another, or use resume_from_checkpoint: auto"


@dataclass(frozen=True)
class ResumeCheckpoint:
    """The folder of the checkpoint to resume from (None: none), and a message for each newer one that was skipped."""

    folder: Path | None
    skipped: tuple[str, ...] = ()


def save_checkpoint(root: Path, snapshot: Snapshot, *, keep: int | None, accelerator: Accelerator) -> None:
    """Write a checkpoint on the main process, then delete all but the newest `keep` (None: keep all).

    Raises:
        TrainingError: the disk is full or read-only; earlier checkpoints are intact. Every process raises it.
    """
    folder = _folder(root, snapshot.state.step)
    temporary = root / f".{folder.name}.tmp"

    def write() -> None:
        """Write the checkpoint under a temporary name, rename it, and delete old ones."""
        try:
            with report_write_errors(folder, "free some space and resume from an earlier checkpoint; these are intact"):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                _write_files(temporary, snapshot)
                share_files(temporary)
                mark_complete(temporary, _FORMAT, _VERSION)
                _rename(temporary, folder)
                delete_old_checkpoints(root, keep, snapshot.state.step)
        except TrainingError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    on_main_process(accelerator, write)


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    save_file(snapshot.weights, folder / "weights.safetensors")
    if snapshot.best is not None:
        save_file(snapshot.best, folder / "best.safetensors")
    objects = {**snapshot.objects, "losses": snapshot.losses, "random": snapshot.random_states}
    torch.save(objects, folder / "optimizer.pt")
    (folder / "state.json").write_text(json.dumps(snapshot.state.to_json()))
    (folder / "run.json").write_text(json.dumps(snapshot.run_fingerprint, indent=1))


def load_checkpoint(
    folder: Path, run_fingerprint: Mapping[str, Any], model: nn.Module, objects: Mapping[str, Any]
) -> Snapshot:
    """Read a checkpoint, and check that it is of this run and fits its model and `objects`.

    Raises:
        TrainingError: the checkpoint cannot be read or does not fit; nothing has been changed.
    """
    try:
        check_fingerprint(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")), run_fingerprint)
        snapshot = _read_files(folder)
        mismatch = snapshot.mismatch(model, objects)
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        raise TrainingError(f"checkpoint {folder} cannot be read ({error}); {_FIX}") from error
    if mismatch:
        raise TrainingError(f"checkpoint {folder} is of another model or optimizer: {mismatch} does not fit; {_FIX}")
    return snapshot


def _read_files(folder: Path) -> Snapshot:
    best = folder / "best.safetensors"
    objects = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    return Snapshot(
        state=TrainState.from_json(json.loads((folder / "state.json").read_text(encoding="utf-8"))),
        weights=load_file(folder / "weights.safetensors"),
        best=load_file(best) if best.is_file() else None,
        losses=objects.pop("losses"),
        random_states=objects.pop("random"),
        objects=objects,
        run_fingerprint=json.loads((folder / "run.json").read_text(encoding="utf-8")),
    )


def find_checkpoint(name: str | None, root: Path) -> ResumeCheckpoint:
    """Return the checkpoint to resume from: the newest complete and intact one for `auto`, else the folder `name`.

    Raises:
        TrainingError: the named folder is not a complete and intact checkpoint.
    """
    if name is None:
        return ResumeCheckpoint(None)
    if name != "auto":
        problem = find_damage(Path(name), _FORMAT, _VERSION)
        if problem:
            raise TrainingError(f"{name} is not a complete checkpoint: {problem}; {_FIX}")
        return ResumeCheckpoint(Path(name))
    skipped: list[str] = []
    for folder in reversed(_checkpoint_folders(root)):
        problem = find_damage(folder, _FORMAT, _VERSION)
        if problem is None:
            return ResumeCheckpoint(folder, tuple(skipped))
        skipped.append(f"Skipped {folder}: {problem}.")
    return ResumeCheckpoint(None, tuple(skipped))


def complete_checkpoints(root: Path) -> list[Path]:
    """Return the finished checkpoints under `root`, oldest first; they may be damaged."""
    return [folder for folder in _checkpoint_folders(root) if (folder / COMPLETE_MARKER).is_file()]


def delete_old_checkpoints(root: Path, keep: int | None, step: int) -> None:
    """Delete all but the newest `keep` checkpoints (None: keep all), and never the one of the current `step`.

    Called after each save and before a run is resumed, as a run that was killed between the two leaves one too many.
    """
    for old in complete_checkpoints(root)[: -keep if keep else 0]:
        if old != _folder(root, step):
            # Renamed first, so that a partly deleted folder never looks like a checkpoint.
            temporary = old.rename(old.with_name(f".{old.name}.tmp"))
            shutil.rmtree(temporary, ignore_errors=True)


def clean_up_checkpoints(root: Path) -> None:
    """Remove temporary folders of killed processes, and restore a checkpoint whose replacement was not finished."""
    for old in root.glob(f".{_PREFIX}*.old"):
        folder = root / old.name.removeprefix(".").removesuffix(".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
    for temporary in root.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    """Replace `folder` by `temporary`; after an interruption, `clean_up_checkpoints` restores the previous `folder`."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    fsync_path(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _folder(root: Path, step: int) -> Path:
    return root / f"{_PREFIX}{step:06d}"


def _checkpoint_folders(root: Path) -> list[Path]:
    """Return all folders with the name of a checkpoint, sorted by step."""
    folders = [folder for folder in root.glob(f"{_PREFIX}*") if folder.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix(_PREFIX)))
