from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.errors import TrainingError
from finetune.training.checkpoints import (
    clean_up_checkpoints,
    complete_checkpoints,
    delete_old_checkpoints,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from finetune.training.snapshot import Snapshot, restore_weights, trained_weights
from finetune.training.state import TrainState, random_state


def build(seed: int, width: int = 2) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def save(root: Path, step: int, accelerator: Accelerator, keep: int | None = None, **fingerprint: Any) -> nn.Linear:
    model, optimizer = build(step)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    snapshot = Snapshot(
        state=TrainState(step=step),
        weights=trained_weights(model),
        best={"weight": torch.full((2, 2), 7.0), "bias": torch.zeros(2)},
        losses=torch.tensor([0.5, 0.25]),
        objects={"optimizer": optimizer.state_dict()},
        random_states=[random_state()],
        run_fingerprint=fingerprint,
    )
    save_checkpoint(root, snapshot, keep=keep, accelerator=accelerator)
    return model


def load(folder: Path, model: nn.Module, optimizer: Any, fingerprint: Mapping[str, Any] | None = None) -> Snapshot:
    objects = {"optimizer": optimizer}
    snapshot = load_checkpoint(folder, fingerprint or {}, model, objects)
    snapshot.restore(model, objects, process=0)
    return snapshot


def test_a_resumed_run_deletes_the_old_checkpoints_of_a_killed_run(tmp_path: Path, accelerator: Accelerator) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step, accelerator)
    delete_old_checkpoints(tmp_path, None, 8)
    assert len(complete_checkpoints(tmp_path)) == 4
    delete_old_checkpoints(tmp_path, 2, 4)  # resumed from a named checkpoint that is not the newest
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["step-000004", "step-000006", "step-000008"]
    delete_old_checkpoints(tmp_path, 1, 8)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000008"]


def test_the_newest_checkpoints_are_kept(tmp_path: Path, accelerator: Accelerator) -> None:
    for step in (9, 10, 1000000):
        save(tmp_path, step, accelerator, keep=2)
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["step-000010", "step-1000000"]
    assert find_checkpoint("auto", tmp_path).folder == tmp_path / "step-1000000"
    assert find_checkpoint(None, tmp_path).folder is None
    assert find_checkpoint("auto", tmp_path / "nowhere").folder is None
    assert find_checkpoint(str(tmp_path / "step-000010"), tmp_path).folder == tmp_path / "step-000010"


def test_the_checkpoint_just_written_is_kept_next_to_newer_ones(tmp_path: Path, accelerator: Accelerator) -> None:
    for step in (20, 30, 11):  # a run resumed at step 10 writes the third
        save(tmp_path, step, accelerator, keep=2)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-000011", "step-000020", "step-000030"}


def test_everything_is_restored(tmp_path: Path, accelerator: Accelerator) -> None:
    saved = save(tmp_path, 3, accelerator)
    expected = torch.rand(3)  # the next random numbers after saving
    model, optimizer = build(8)
    snapshot = load(tmp_path / "step-000003", model, optimizer)
    assert torch.equal(torch.rand(3), expected)
    assert snapshot.state == TrainState(step=3)
    assert snapshot.best is not None
    assert snapshot.best["weight"].tolist() == [[7.0, 7.0]] * 2
    assert snapshot.losses.tolist() == [0.5, 0.25]
    assert torch.equal(model.weight, saved.weight)
    assert float(optimizer.state[model.weight]["exp_avg"].abs().sum()) > 0


def test_the_files_of_a_checkpoint_have_the_permissions_of_any_new_file(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    save(tmp_path / "run", 2, accelerator)
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "run" / "step-000002").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_the_files_of_a_checkpoint_do_not_change(tmp_path: Path, accelerator: Accelerator) -> None:
    save(tmp_path, 3, accelerator, seed=1)
    folder = tmp_path / "step-000003"
    assert {file.name for file in folder.iterdir()} == {
        "weights.safetensors", "best.safetensors", "optimizer.pt", "state.json", "run.json", "COMPLETE",
    }  # fmt: skip
    assert list(torch.load(folder / "optimizer.pt", weights_only=True)) == ["optimizer", "losses", "random"]
    assert json.loads((folder / "run.json").read_text()) == {"seed": 1}
    marker = json.loads((folder / "COMPLETE").read_text())
    assert (marker["kind"], marker["version"]) == ("finetune checkpoint", 3)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def change_version(file: Path) -> None:
    marker = json.loads(file.read_text())
    file.write_text(json.dumps(marker | {"version": 1}))


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (Path.unlink, "COMPLETE", "it has no COMPLETE marker, so it was never finished"),
        (truncate, "COMPLETE", "its COMPLETE marker cannot be read"),
        (change_version, "COMPLETE", r"a finetune checkpoint of version 1; expected .* version 3"),
        (Path.unlink, "best.safetensors", "best.safetensors is missing"),
        (truncate, "optimizer.pt", r"optimizer.pt has \d+ bytes instead of \d+"),
        *((flip_bit, name, f"{name} was changed") for name in ("weights.safetensors", "optimizer.pt", "state.json")),
    ],
)
def test_a_damaged_checkpoint_is_skipped_or_rejected(
    tmp_path: Path, accelerator: Accelerator, damage: Callable[[Path], None], name: str, message: str
) -> None:
    save(tmp_path, 1, accelerator)
    save(tmp_path, 2, accelerator)
    damage(tmp_path / "step-000002" / name)
    search = find_checkpoint("auto", tmp_path)
    assert search.folder == tmp_path / "step-000001"
    (line,) = search.skipped
    assert line.startswith(f"Skipped {tmp_path / 'step-000002'}: ")
    with pytest.raises(
        TrainingError, match=rf"step-000002 is not a complete checkpoint: .*{message}.*; name another, or use"
    ):
        find_checkpoint(str(tmp_path / "step-000002"), tmp_path)


def test_a_changed_bit_in_any_file_is_detected(tmp_path: Path, accelerator: Accelerator) -> None:
    save(tmp_path, 1, accelerator)
    files = [file for file in (tmp_path / "step-000001").iterdir() if file.name != "COMPLETE"]
    assert len(files) == 5
    for file in files:
        content = file.read_bytes()
        for index in (0, len(content) // 3, len(content) - 1):
            file.write_bytes(content[:index] + bytes([content[index] ^ 0x80]) + content[index + 1 :])
            assert find_checkpoint("auto", tmp_path).folder is None
        file.write_bytes(content)
    assert find_checkpoint("auto", tmp_path).folder == tmp_path / "step-000001"


def unchanged(model: nn.Module, optimizer: Any, before: dict[str, Tensor]) -> bool:
    return not optimizer.state and all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path, accelerator: Accelerator) -> None:
    save(tmp_path, 1, accelerator, seed=1)
    folder = tmp_path / "step-000001"
    model, optimizer = build(5)
    before = trained_weights(model)
    with pytest.raises(TrainingError, match=r"differs from this one:\n  seed: was 1, now 2\nrestore these settings"):
        load(folder, model, optimizer, {"seed": 2})
    assert unchanged(model, optimizer, before)
    fewer_parameters = torch.optim.AdamW([model.weight])
    with pytest.raises(TrainingError, match=r"another model or optimizer: the number of the optimizer's parameters"):
        load(folder, model, fewer_parameters, {"seed": 1})
    reordered = torch.optim.AdamW([model.bias, model.weight])
    with pytest.raises(TrainingError, match=r"the optimizer's state of parameter 0 does not fit; name another"):
        load(folder, model, reordered, {"seed": 1})
    wide_model, wide_optimizer = build(5, width=3)
    wide_optimizer.param_groups[0]["params"] = list(model.parameters())
    before_wide = trained_weights(wide_model)
    with pytest.raises(TrainingError, match=r"another model or LoRA setting: it differs in weight; restore"):
        load(folder, wide_model, wide_optimizer, {"seed": 1})
    assert unchanged(wide_model, wide_optimizer, before_wide)
    with pytest.raises(TrainingError, match=r"another model or optimizer: scaler does not fit"):
        load_checkpoint(folder, {"seed": 1}, model, {"optimizer": optimizer, "scaler": optimizer})
    assert unchanged(model, optimizer, before)
    load(folder, model, optimizer, {"seed": 1})
    assert not unchanged(model, optimizer, before)


def test_a_failed_save_leaves_earlier_checkpoints(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, accelerator)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(
        TrainingError, match=r"step-000002: No space left on device; free some space and resume from an earl"
    ):
        save(tmp_path, 2, accelerator, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_replacing_a_checkpoint_never_loses_it(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, accelerator)
    rename, targets = Path.rename, []

    def rename_or_stop(self: Path, target: Path) -> Path:
        targets.append(target.name)
        if len(targets) == stop:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_stop)
    for stop in (1, 2):
        targets.clear()
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1, accelerator)
        stop = 0
        clean_up_checkpoints(tmp_path)
        assert find_checkpoint("auto", tmp_path).folder == tmp_path / "step-000001"
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    targets.clear()
    save(tmp_path, 1, accelerator)
    assert targets == [".step-000001.old", "step-000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_weights_of_another_shape_or_dtype_are_rejected() -> None:
    weights = trained_weights(nn.Linear(2, 2))
    restore_weights(nn.Linear(2, 2), weights)
    with pytest.raises(TrainingError, match=r"differs in (bias, )?weight"):
        restore_weights(nn.Linear(2, 3), weights)
    with pytest.raises(TrainingError, match=r"differs in (bias, )?weight"):
        restore_weights(nn.Linear(2, 2).to(torch.bfloat16), weights)
