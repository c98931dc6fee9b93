from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from finetune.checkpoints import (
    TrainState,
    complete_checkpoints,
    find_checkpoint,
    load_checkpoint,
    restore_weights,
    save_checkpoint,
    trained_weights,
)
from finetune.errors import TrainingError


def save(root: Path, step: int, accelerator: Accelerator, keep: int | None = None) -> nn.Linear:
    torch.manual_seed(step)
    model = nn.Linear(2, 2)
    save_checkpoint(root, TrainState(step=step), model, None, {}, keep=keep, accelerator=accelerator)
    return model


def test_the_newest_are_kept(tmp_path: Path, accelerator: Accelerator) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step, accelerator, keep=2)
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["step-000010", "step-000100"]
    assert find_checkpoint("auto", tmp_path) == tmp_path / "step-000100"
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("auto", tmp_path / "nowhere") is None
    assert find_checkpoint("some/where", tmp_path) == Path("some/where")


def test_state_weights_and_random_state_come_back(tmp_path: Path, accelerator: Accelerator) -> None:
    saved = save(tmp_path, 3, accelerator)
    expected = torch.rand(3)  # what is drawn next after the save
    other = nn.Linear(2, 2)
    state, best = load_checkpoint(tmp_path / "step-000003", other, {}, accelerator)
    assert torch.equal(torch.rand(3), expected)
    assert (state, best) == (TrainState(step=3), None)
    assert torch.equal(other.weight, saved.weight)


def test_an_incomplete_checkpoint_is_not_taken(tmp_path: Path, accelerator: Accelerator) -> None:
    save(tmp_path, 1, accelerator)
    save(tmp_path, 2, accelerator)
    (tmp_path / "step-000002" / "COMPLETE").unlink()
    assert find_checkpoint("auto", tmp_path) == tmp_path / "step-000001"
    with pytest.raises(TrainingError, match=r"step-000002 is no complete checkpoint"):
        load_checkpoint(tmp_path / "step-000002", nn.Linear(2, 2), {}, accelerator)


def test_a_failed_save_leaves_earlier_checkpoints(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, accelerator)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"step-000002: .*No space left on device; earlier checkpoints are intact"):
        save(tmp_path, 2, accelerator, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_weights_of_another_shape_are_refused() -> None:
    weights = trained_weights(nn.Linear(2, 2))
    restore_weights(nn.Linear(2, 2), weights)
    with pytest.raises(TrainingError, match=r"differs in (bias, )?weight"):
        restore_weights(nn.Linear(2, 3), weights)
