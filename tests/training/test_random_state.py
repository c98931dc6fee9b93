from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.training.state import random_state, restore_random_state


def test_the_same_random_numbers_follow_a_restored_state() -> None:
    state = random_state()
    first = torch.rand(3)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), first)
    assert state.keys() == {"cpu"}  # no accelerator, or none in use


@pytest.mark.parametrize("device_type", ["cuda", "mps", "xpu"])
@pytest.mark.parametrize("in_use", [True, False])
def test_the_generator_of_an_accelerator_in_use_is_saved_and_restored(
    monkeypatch: pytest.MonkeyPatch, device_type: str, in_use: bool
) -> None:
    generator: dict[str, Any] = {"state": torch.tensor([1], dtype=torch.uint8)}
    module = SimpleNamespace(
        get_rng_state=lambda: generator["state"].clone(),
        set_rng_state=lambda state: generator.update(state=state),
        is_initialized=lambda: in_use,
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(device_type))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    state = random_state()
    assert state.keys() == ({"cpu", device_type} if in_use else {"cpu"})
    generator["state"] = torch.tensor([2], dtype=torch.uint8)
    restore_random_state(state)
    assert generator["state"].item() == (1 if in_use else 2)
    restore_random_state({"cpu": state["cpu"]})  # saved by a run without an accelerator
