"""The state of a process's generators: what dropout draws next."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Return the state of this process's generators, by type of device: the CPU, and an accelerator that is in use."""
    return {"cpu": torch.get_rng_state()} | {name: module.get_rng_state() for name, module in _accelerator().items()}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the state of this process's generators back."""
    torch.set_rng_state(state["cpu"])
    for name, module in _accelerator().items():
        if name in state:
            module.set_rng_state(state[name])


def _accelerator() -> dict[str, ModuleType]:
    """Return the accelerator's type and torch's module for it; nothing where none is in use.

    A run on the CPU of a machine with a GPU does not touch the GPU: to ask for its state would take memory there.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return {}
    module = torch.get_device_module(device)
    in_use = getattr(module, "is_initialized", lambda: True)()  # MPS has no such function
    return {device.type: module} if in_use else {}
