"""The moving average of the weights: finetune/training/averaging.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.snapshot import trained_weights
from tests.support.helpers import FLOAT32, encoded, plan
from tests.support.training import LORA, largest_difference, train_on_sentences


@pytest.mark.parametrize("lora", [None, LORA], ids=["full, with the embedding subset", "lora"])
def test_the_model_ends_with_the_average_of_the_weights(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, lora: Lora | None
) -> None:
    averaged, plain, decay = build(lora), build(lora), 0.3
    expected = {name: weight.double() for name, weight in trained_weights(averaged.model).items()}
    common, schedule = {"weight_decay": 0.5}, plan(save_every=1)
    train_on_sentences(averaged, accelerator, tmp_path / "averaged", schedule, **common, ema_decay=decay)
    train_on_sentences(plain, accelerator, tmp_path / "plain", schedule, **common)
    for step in range(1, 7):
        files = [tmp_path / name / f"step-{step:06d}" / "weights.safetensors" for name in ("averaged", "plain")]
        weights, same = map(load_file, files)
        assert largest_difference(weights, same) == 0.0  # averaging does not change training
        share = min(decay, (1 + step) / (10 + step))
        assert (share == decay) == (step >= 3)
        expected = {name: share * expected[name] + (1 - share) * weight.double() for name, weight in weights.items()}
    final = trained_weights(averaged.model)
    assert largest_difference(final, trained_weights(plain.model)) > 1e-3
    for name, weight in final.items():
        torch.testing.assert_close(weight.double(), expected[name], atol=1e-6, rtol=FLOAT32)


def test_evaluation_and_the_best_weights_use_the_average(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    short, long = build(), build()
    train_on_sentences(short, accelerator, tmp_path / "short", plan(epochs=1, total_steps=3), ema_decay=0.9)
    train_on_sentences(long, accelerator, tmp_path / "long", plan(save_every=3), ema_decay=0.9, evaluations=[0.2, 0.5])
    assert largest_difference(trained_weights(long.model), trained_weights(short.model)) == 0.0
    # The checkpoint at the best step has the current weights and, in a file of their own, the averaged ones.
    best = load_file(tmp_path / "long" / "step-000003" / "best.safetensors")
    assert largest_difference(best, trained_weights(short.model)) == 0.0
    weights = load_file(tmp_path / "long" / "step-000003" / "weights.safetensors")
    assert largest_difference(best, weights) > 1e-3


def test_a_skipped_step_does_not_change_the_average(
    build: Callable[..., Classifier], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=2.0**127))
    monkeypatch.setattr(accelerator, "native_amp", True)
    classifier, changed = build(), []
    training = TrainingSection(learning_rate=1e-2, lr_scheduler_type="constant", ema_decay=0.9)
    trainer = build_trainer(classifier, encoded(classifier), plan(), Hyperparameters(training, seed=0), accelerator)
    average = trainer.stepper.model.average
    assert average is not None
    for _ in range(2):
        for micro_batches, rows in trainer.epoch_steps():
            before, rows_before = (
                copy.deepcopy(average.state_dict()),
                trainer.stepper.model.embeddings.rows.detach().clone(),
            )
            trainer.optimizer_step(micro_batches, rows)
            skipped = torch.equal(trainer.stepper.model.embeddings.rows, rows_before)
            after = average.state_dict()
            changed.append(not skipped)
            assert after["steps"] == before["steps"] + changed[-1]
            pairs = list(zip(after["average"], before["average"], strict=True))
            assert all(torch.equal(*pair) for pair in pairs) == skipped
    assert not changed[0]
    assert changed[-1]
