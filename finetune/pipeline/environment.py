"""Describe the environment of a run: versions, commit, device, seed."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from finetune.version import __version__

_PACKAGES = ("accelerate", "datasets", "evaluate", "peft", "tokenizers", "torch", "transformers")


def describe_environment(accelerator: Accelerator, seed: int) -> dict[str, object]:
    """Return versions, commit, device and seed of a run, as plain values."""
    device = accelerator.device
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finetune": __version__,  # not from package metadata: a checkout may be used without installation
        "commit": _commit(),
        "packages": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.get_device_module(device).get_device_name(device)
        if device.type in ("cuda", "xpu")
        else f"{device.type} ({platform.machine()})",
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "seed": seed,
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        root_and_commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return root_and_commit[1] if Path(root_and_commit[0]) == root else None
