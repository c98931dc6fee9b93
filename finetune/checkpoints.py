"""Checkpoints: whole or absent, and enough to go on to the bit.

A checkpoint is one folder, `step-000120`. It is written aside, marked complete, and renamed; a folder
without its mark is never read.

    weights.safetensors   the parameters that are trained
    best.safetensors      the same at the best evaluation so far, if there was one
    optimizer.pt          optimiser, schedule, loss scaler, each process's random state
    state.json            TrainState
    COMPLETE
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import TrainingError

_COMPLETE = "COMPLETE"
_PREFIX = "step-"


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        step: optimiser steps done.
        epoch: epochs done.
        step_in_epoch: optimiser steps done in the current epoch.
        best_step: the step of the best evaluation, None before the first.
        best_value: its metric.
        evaluations_since_best: evaluations without a better one, for early stopping.
        train_seconds: time spent in steps.
        shape: training rows, rows of a batch, batches of a step; a run that goes on must have the same.
        rows_seen, tokens_seen, padded_seen: rows, real tokens, and tokens with padding that were trained on.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    shape: tuple[int, int, int] = (0, 0, 0)
    rows_seen: int = 0
    tokens_seen: int = 0
    padded_seen: int = 0


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of every parameter that is trained, by name."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


def restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put trained parameters back.

    Raises:
        TrainingError: the names or shapes are not those of this model.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    odd = sorted(own.keys() ^ weights.keys()) or [n for n in own if own[n].shape != weights[n].shape]
    if odd:
        raise TrainingError(f"the checkpoint is of another model or LoRA setting: it differs in {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def save_checkpoint(
    root: Path,
    state: TrainState,
    model: nn.Module,
    best: dict[str, Tensor] | None,
    machinery: dict[str, Any],
    *,
    keep: int | None,
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint on the main process, then delete all but the newest `keep`.

    Args:
        machinery: objects with `state_dict` by name (optimizer, scheduler, scaler).

    Raises:
        TrainingError: the disk is full or read-only; earlier checkpoints are untouched.
    """
    random = gather_object([_random_state()])
    if accelerator.is_main_process:
        name = f"{_PREFIX}{state.step:06d}"
        aside = root / f".{name}.tmp"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(trained_weights(model), aside / "weights.safetensors")
            if best is not None:
                save_file(best, aside / "best.safetensors")
            states = {key: item.state_dict() for key, item in machinery.items()}
            torch.save({**states, "random": random}, aside / "optimizer.pt")
            (aside / "state.json").write_text(json.dumps(asdict(state)))
            for file in aside.iterdir():
                _to_disk(file)
            (aside / _COMPLETE).touch()
            shutil.rmtree(root / name, ignore_errors=True)
            aside.rename(root / name)
            _to_disk(root)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise TrainingError(
                f"cannot write checkpoint {root / name}: {error}; earlier checkpoints are intact"
            ) from error
        for old in complete_checkpoints(root)[: -keep if keep else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(
    folder: Path, model: nn.Module, machinery: dict[str, Any], accelerator: Accelerator
) -> tuple[TrainState, dict[str, Tensor] | None]:
    """Put model, optimiser, schedule and random state back; return where training stood and the best weights.

    The random state is restored last: nothing may be drawn between this call and the next step.

    Raises:
        TrainingError: the checkpoint is incomplete, of another model, or of another number of processes.
    """
    if not (folder / _COMPLETE).is_file():
        raise TrainingError(f"{folder} is no complete checkpoint; name another, or use resume_from_checkpoint: auto")
    restore_weights(model, load_file(folder / "weights.safetensors"))
    states = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    if len(states["random"]) != accelerator.num_processes:
        raise TrainingError(
            f"{folder} was written by {len(states['random'])} processes, this run has {accelerator.num_processes}; "
            "start as many"
        )
    for key, item in machinery.items():
        item.load_state_dict(states[key])
    best = folder / "best.safetensors"
    known = json.loads((folder / "state.json").read_text())
    state = TrainState(**{**known, "shape": tuple(known["shape"])})
    weights = load_file(best) if best.is_file() else None
    _restore_random_state(states["random"][accelerator.process_index])
    return state, weights


def complete_checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints under `root`, oldest first."""
    return sorted(folder for folder in root.glob(f"{_PREFIX}*") if (folder / _COMPLETE).is_file())


def find_checkpoint(asked: str | None, root: Path) -> Path | None:
    """Return the checkpoint to go on from: the newest complete one for `auto`, else the folder asked for."""
    if asked is None:
        return None
    if asked == "auto":
        return next(reversed(complete_checkpoints(root)), None)
    return Path(asked)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
