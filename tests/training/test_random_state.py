from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.training.state import random_state, restore_random_state


def test_what_is_drawn_next_comes_back() -> None:
    state = random_state()
    first = torch.rand(3)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), first)
    assert state.keys() == {"cpu"}  # there is no accelerator, or nothing has used it


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
@pytest.mark.parametrize("in_use", [True, False])
def test_an_accelerator_in_use_has_a_generator_too(monkeypatch: pytest.MonkeyPatch, kind: str, in_use: bool) -> None:
    held: dict[str, Any] = {"state": torch.tensor([1], dtype=torch.uint8)}
    module = SimpleNamespace(
        get_rng_state=lambda: held["state"].clone(),
        set_rng_state=lambda state: held.update(state=state),
        is_initialized=lambda: in_use,
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(kind))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    state = random_state()
    assert state.keys() == ({"cpu", kind} if in_use else {"cpu"})
    held["state"] = torch.tensor([2], dtype=torch.uint8)
    restore_random_state(state)
    assert held["state"].item() == (1 if in_use else 2)
    restore_random_state({"cpu": state["cpu"]})  # of a run that had no accelerator
