"""Checkpoints: whole or absent, and enough to go on to the bit.

A checkpoint is one folder, `step-000120`. It is written aside, sealed, and renamed; one that is unfinished, altered
since, or of something else is never read, and nothing of the run is changed before all of it is known to fit.

    weights.safetensors   the parameters that are trained
    best.safetensors      the same at the best evaluation so far, if there was one
    optimizer.pt          optimiser, schedule, loss scaler, losses not logged yet, each process's random state
    state.json            TrainState
    run.json              what the run must have in common with one that goes on from here
    COMPLETE              the seal, see files.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.distributed import on_main_process
from finetune.errors import TrainingError
from finetune.runs.atomic_files import COMPLETE_MARKER, find_damage, fsync_path, mark_complete, report_write_errors
from finetune.training.resume_check import refuse_differences
from finetune.training.state import Progress, TrainState, random_state, restore_random_state

_KIND, _VERSION = "finetune checkpoint", 3
_PREFIX = "step-"
_OTHER = "name another, or use resume_from_checkpoint: auto"


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from, if there is one, and why newer ones were skipped, a line each."""

    folder: Path | None
    skipped: tuple[str, ...] = ()


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of every parameter that is trained, by name."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


def restore_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put trained parameters back.

    Raises:
        TrainingError: the names, shapes or dtypes are not those of this model, which is left as it was.
    """
    own = _own_if_alike(model, weights)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def _own_if_alike(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the parameters of the model that are trained; raise TrainingError if `weights` are of others."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(own.keys() ^ weights.keys()) or [
        name for name in own if (own[name].shape, own[name].dtype) != (weights[name].shape, weights[name].dtype)
    ]
    if odd:
        raise TrainingError(
            f"the checkpoint is of another model or LoRA setting: it differs in {', '.join(odd[:3])}; set them as they "
            "were, or name another checkpoint"
        )
    return own


def save_checkpoint(
    root: Path,
    progress: Progress,
    model: nn.Module,
    machinery: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    keep: int | None,
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint on the main process, then delete all but the newest `keep`.

    Args:
        machinery: objects with `state_dict` by name (optimizer, scheduler, scaler).
        facts: what a run that goes on must have in common with this one, as JSON.

    Raises:
        TrainingError: the disk is full or read-only; earlier checkpoints are untouched. Every process raises it.
    """
    random = gather_object([random_state()])
    states = {key: item.state_dict() for key, item in machinery.items()}  # may be gathered from all processes
    place = _place(root, progress.state.step)
    aside = root / f".{place.name}.tmp"

    def write() -> None:
        try:
            with report_write_errors(place, "make room, and go on from the earlier checkpoints, which are intact"):
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                save_file(trained_weights(model), aside / "weights.safetensors")
                if progress.best is not None:
                    save_file(progress.best, aside / "best.safetensors")
                torch.save({**states, "losses": progress.losses, "random": random}, aside / "optimizer.pt")
                (aside / "state.json").write_text(json.dumps(asdict(progress.state)))
                (aside / "run.json").write_text(json.dumps(facts, indent=1))
                mark_complete(aside, _KIND, _VERSION)
                _take_place(aside, place)
                forget_old(root, keep, progress.state.step)
        except TrainingError:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    on_main_process(accelerator, write)


def _take_place(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`. A checkpoint that is there is lost at no moment: see `tidy`."""
    old = _replaced(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    aside.rename(folder)
    fsync_path(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def forget_old(root: Path, keep: int | None, step: int) -> None:
    """Delete all but the newest `keep` checkpoints (None: keep all), and never that of `step`, where training stands.

    Called after each save, and before a run goes on: one that was killed between the two has one too many.
    """
    for old in complete_checkpoints(root)[: -keep if keep else 0]:
        if old != _place(root, step):
            # Half a checkpoint must not pass for one.
            aside = old.rename(old.with_name(f".{old.name}.tmp"))
            shutil.rmtree(aside, ignore_errors=True)


def _place(root: Path, step: int) -> Path:
    return root / f"{_PREFIX}{step:06d}"


def tidy(root: Path) -> None:
    """Clear away what killed processes left; a checkpoint that was being replaced gets its place back."""
    for old in root.glob(f".{_PREFIX}*.old"):
        folder = root / old.name.removeprefix(".").removesuffix(".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
    for aside in root.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(aside, ignore_errors=True)


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    machinery: Mapping[str, Any],
    facts: Mapping[str, Any],
    accelerator: Accelerator,
) -> Progress:
    """Put model, optimiser, schedule and random state back; return where training stood.

    Everything is read and compared before the first weight is changed. The random state is restored last: nothing may
    be drawn between this call and the next step.

    Raises:
        TrainingError: the checkpoint cannot be read or does not fit; model and machinery are as they were.
    """
    try:
        refuse_differences(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")), facts)
        weights = load_file(folder / "weights.safetensors")
        best_file = folder / "best.safetensors"
        best = load_file(best_file) if best_file.is_file() else None
        states = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        state = TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        random, losses = states["random"][accelerator.process_index], states["losses"]
        for held in (weights, best):
            _own_if_alike(model, weights if held is None else held)
        missing = sorted(machinery.keys() - states.keys())
        optimizer = machinery.get("optimizer")
        odd = missing[0] if missing else optimizer and _misfits(optimizer, states["optimizer"])
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
        raise TrainingError(f"checkpoint {folder} cannot be read ({error}); {_OTHER}") from error
    if odd:
        raise TrainingError(f"checkpoint {folder} is of another model or optimiser: {odd} does not fit; {_OTHER}")
    restore_weights(model, weights)
    for key, item in machinery.items():
        item.load_state_dict(states[key])
    restore_random_state(random)
    return Progress(state, best, losses)


def _misfits(optimizer: Any, saved: Mapping[str, Any]) -> str | None:
    """Return what of an optimiser's saved state has another number or shape, None if all fits."""
    own, held = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in held]:
        return "the number of the optimizer's parameters"
    for index, parameter in enumerate(p for group in own for p in group["params"]):
        moments = [value for value in saved["state"].get(index, {}).values() if value.dim()]
        if any(moment.shape != parameter.shape for moment in moments):
            return f"the optimizer's state of parameter {index}"
    return None


def complete_checkpoints(root: Path) -> list[Path]:
    """Return the finished checkpoints under `root`, oldest first; they may have been damaged since."""
    return [folder for folder in _candidates(root) if (folder / COMPLETE_MARKER).is_file()]


def _candidates(root: Path) -> list[Path]:
    numbered = [folder for folder in root.glob(f"{_PREFIX}*") if folder.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(numbered, key=lambda folder: int(folder.name.removeprefix(_PREFIX)))


def find_checkpoint(asked: str | None, root: Path) -> Found:
    """Return the checkpoint to go on from: the newest complete and intact one for `auto`, else the folder asked for.

    Raises:
        TrainingError: the folder asked for is not complete and intact.
    """
    if asked is None:
        return Found(None)
    if asked != "auto":
        wrong = find_damage(Path(asked), _KIND, _VERSION)
        if wrong:
            raise TrainingError(f"{asked} is no complete checkpoint: {wrong}; {_OTHER}")
        return Found(Path(asked))
    skipped: list[str] = []
    for folder in reversed(_candidates(root)):
        wrong = find_damage(folder, _KIND, _VERSION)
        if wrong is None:
            return Found(folder, tuple(skipped))
        skipped.append(f"Skipped {folder}: {wrong}.")
    return Found(None, tuple(skipped))
