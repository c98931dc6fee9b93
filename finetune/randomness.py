"""The state of a process's generators: what dropout draws next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Return the state of this process's generators."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the state of this process's generators back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
