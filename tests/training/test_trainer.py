from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from finetune.data.padding import Padding
from finetune.data.token_rows import TokenRows
from finetune.errors import TrainingError
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.pipeline.train_stage import training_result
from finetune.recipe.training_section import TrainingSection
from finetune.signals import Interrupted, stop_after_step
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import complete_checkpoints, find_checkpoint
from finetune.training.snapshot import trained_weights
from finetune.training.trainer import Evaluation
from tests.support.helpers import encoded, plan
from tests.support.training import LORA, largest_difference, train_on_sentences


def test_the_learning_rate_warms_up_and_decays(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    _, _, entries = train_on_sentences(build(), accelerator, tmp_path, plan(warmup_steps=2), lr_scheduler_type="linear")
    assert [entry["learning_rate"] for entry in entries] == pytest.approx([5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3, 0.0])


def test_a_resumed_epoch_reads_no_rows_of_its_earlier_steps(
    build: Callable[..., Classifier], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, read = build(), []
    batch = TokenRows.batch

    def recording_batch(self: TokenRows, rows: np.ndarray, padding: Padding) -> Any:
        read.append(rows.tolist())
        return batch(self, rows, padding)

    monkeypatch.setattr(TokenRows, "batch", recording_batch)
    schedule = plan(steps_per_epoch=6, accumulation=2, batch_size=1)
    hyperparameters = Hyperparameters(TrainingSection(learning_rate=1e-2), seed=0)
    trainer = build_trainer(classifier, encoded(classifier), schedule, hyperparameters, accelerator)
    read.clear()
    trainer.state.step_in_epoch = 2
    steps = trainer.epoch_steps()
    assert read == []
    _, rows = next(steps)
    assert read == [[row] for row in rows.tolist()] == [batch.tolist() for batch in trainer.plan_rows(0)[2]]
    assert list(steps) == []


def test_early_stopping_restores_the_best_weights(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = build()
    schedule = plan(epochs=9, total_steps=27, patience=2, save_every=0)
    trainer, reason, entries = train_on_sentences(
        classifier, accelerator, tmp_path, schedule, evaluations=[0.9, 0.5, 0.7, 0.6, 0.1]
    )
    assert reason == "no better evaluation in 2"
    assert (trainer.state.step, trainer.state.best_step, trainer.state.best_value) == (12, 6, 0.5)
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [3, 6, 9, 12]
    for name in ("step-000006/weights", "step-000012/best"):
        weights = load_file(tmp_path / f"{name}.safetensors")
        assert largest_difference(weights, trained_weights(classifier.model)) == 0.0
    result = training_result(trainer, reason, "loss")
    assert (result.steps, result.best_step, result.speed.train_samples_per_second > 0) == (12, 6, True)


@pytest.mark.parametrize(
    ("metric", "best"), [([0.5, 0.5, 0.5], 6), ([None, None, None], 6), ([None, 0.1, None], 6), ([0.2, None, None], 3)]
)
def test_the_loss_decides_between_equal_or_undefined_metrics(
    build: Callable[..., Classifier],
    accelerator: Accelerator,
    tmp_path: Path,
    metric: list[float | None],
    best: int,
) -> None:
    classifier = build()
    results = [{"loss": loss, "pearson": value} for loss, value in zip([0.9, 0.5, 0.7], metric, strict=True)]
    schedule = plan(epochs=3, total_steps=9, save_every=0)
    trainer, reason, entries = train_on_sentences(
        classifier, accelerator, tmp_path, schedule, evaluations=results, best_metric="pearson"
    )
    assert trainer.state.best_step == best
    weights = load_file(tmp_path / f"step-{best:06d}" / "weights.safetensors")
    assert largest_difference(weights, trained_weights(classifier.model)) == 0.0
    assert [entry["eval_pearson"] for entry in entries if "eval_loss" in entry] == metric
    text = training_result(trainer, reason, "pearson").best_text()
    assert text.startswith("best pearson 0." if any(metric) else "pearson undefined in every evaluation, lowest loss")


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("stop", [3, 4], ids=["epoch's end", "mid-epoch"])
def test_a_resumed_run_ends_with_the_same_bits(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, lora: Lora | None, stop: int
) -> None:
    losses, common = [0.5, 0.7, 0.6], {"lr_scheduler_type": "linear"}
    schedule = plan(epochs=3, total_steps=9, save_every=1, warmup_steps=2)
    full = build(lora)
    train_on_sentences(full, accelerator, tmp_path / "full", schedule, **common, evaluations=losses)
    interrupted = build(lora)
    with pytest.raises(InterruptedError):
        train_on_sentences(
            interrupted, accelerator, tmp_path / "interrupted", schedule, **common, evaluations=losses, stop_after=stop
        )
    checkpoint = find_checkpoint("auto", tmp_path / "interrupted").folder
    assert checkpoint is not None
    assert checkpoint.name == f"step-{stop:06d}"
    resumed = build(lora)
    torch.manual_seed(77)
    options = {"evaluations": losses[stop // 3 :], "resume": checkpoint}
    trainer, _, entries = train_on_sentences(resumed, accelerator, tmp_path / "resumed", schedule, **common, **options)
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(stop + 1, 10))
    assert trainer.state.best_step == 3
    assert largest_difference(trained_weights(resumed.model), trained_weights(full.model)) == 0.0
    optimizer_states = [
        torch.load(tmp_path / name / "step-000009" / "optimizer.pt", weights_only=True) for name in ("full", "resumed")
    ]
    for expected, actual in zip(*(states["optimizer"]["state"].values() for states in optimizer_states), strict=True):
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


# Options of the recipe's section `training` whose state, or whose random numbers, a resumed run must continue.
OPTIONS: dict[str, dict[str, Any]] = {
    "moving average": {"ema_decay": 0.9, "weight_decay": 0.5},
    "contrast": {"contrastive_weight": 0.5},
    "rates by layer": {"layerwise_lr_decay": 0.5, "weight_decay": 0.5},
    "another schedule": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "R-Drop": {"rdrop_alpha": 2.0, "label_smoothing_factor": 0.1},
    "focal loss": {"focal_gamma": 2.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_resumed_run_with_an_option_ends_with_the_same_bits(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, options: dict[str, Any]
) -> None:
    classifiers, schedule, losses = [build(), build(), build()], plan(save_every=1), [0.5, 0.7]
    train_on_sentences(classifiers[0], accelerator, tmp_path / "full", schedule, **options, evaluations=losses)
    arguments = {**options, "evaluations": losses}
    with pytest.raises(InterruptedError):
        train_on_sentences(classifiers[1], accelerator, tmp_path / "part", schedule, **arguments, stop_after=4)
    checkpoint = find_checkpoint("auto", tmp_path / "part").folder
    assert checkpoint == tmp_path / "part" / "step-000004"
    torch.manual_seed(77)
    resumed = {**options, "evaluations": losses[1:], "resume": checkpoint}
    train_on_sentences(classifiers[2], accelerator, tmp_path / "resumed", schedule, **resumed)
    full, _, last = (trained_weights(classifier.model) for classifier in classifiers)
    assert largest_difference(last, full) == 0.0
    for name in ("weights", "best"):
        files = [tmp_path / run / "step-000006" / f"{name}.safetensors" for run in ("full", "resumed")]
        assert largest_difference(*map(load_file, files)) == 0.0


def test_checkpoints_of_another_model_are_rejected(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    train_on_sentences(build(LORA), accelerator, tmp_path, plan(save_every=0))
    (newest,) = complete_checkpoints(tmp_path)[-1:]
    with pytest.raises(TrainingError, match="of another model or LoRA setting"):
        train_on_sentences(build(replace(LORA, r=3)), accelerator, tmp_path / "other", plan(), resume=newest)
    with pytest.raises(TrainingError, match=r"differs from this one:\n  trained words: was none, now 19"):
        train_on_sentences(build(), accelerator, tmp_path / "other", plan(), resume=newest)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_signal_saves_a_checkpoint_and_the_resumed_history_is_complete(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, lora: Lora | None
) -> None:
    schedule = plan(epochs=3, total_steps=9, log_every=4)  # no planned checkpoints
    full = build(lora)
    _, _, expected = train_on_sentences(full, accelerator, tmp_path / "full", schedule)
    interrupted, calls = build(lora), []

    def send_signal(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    interrupted.model.register_forward_hook(send_signal)
    entries: list[dict[str, Any]] = []
    trainer = build_trainer(
        interrupted,
        encoded(interrupted),
        schedule,
        Hyperparameters(TrainingSection(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant"), seed=5),
        accelerator,
    )
    message = rf"stopped by SIGTERM after step 6 of 9, saved in {tmp_path}"
    with stop_after_step(is_main_process=False) as request, pytest.raises(Interrupted, match=message):
        trainer.fit(tmp_path, log=entries.append, stop_request=request)
    (saved,) = complete_checkpoints(tmp_path)
    assert saved.name == "step-000006"
    resumed = build(lora)
    _, _, resumed_entries = train_on_sentences(resumed, accelerator, tmp_path / "resumed", schedule, resume=saved)
    for entry in (*expected, *entries, *resumed_entries):
        assert entry.pop("samples_per_second") > 0
    assert [*entries, *resumed_entries] == expected  # the mean at step 8 is over steps 5 to 8
    assert [entry["step"] for entry in expected] == [4, 8, 9]
    assert largest_difference(trained_weights(resumed.model), trained_weights(full.model)) == 0.0


def test_a_signal_in_the_last_evaluation_saves_a_checkpoint(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = build()
    trainer = build_trainer(
        classifier,
        encoded(classifier),
        plan(),
        Hyperparameters(TrainingSection(learning_rate=2e-5), seed=5),
        accelerator,
    )
    evaluations = []

    def evaluate() -> dict[str, float]:
        evaluations.append(trainer.state.step)
        if trainer.state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0}

    message = rf"stopped by SIGTERM after step 6 of 6, saved in {tmp_path}"
    with stop_after_step(is_main_process=False) as request, pytest.raises(Interrupted, match=message):
        trainer.fit(tmp_path, evaluation=Evaluation(evaluate), stop_request=request)
    assert evaluations == [3, 6]
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["step-000006"]


def test_the_logged_gradient_norm_is_that_before_clipping(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    def recorded(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]))
        norms.append(norm.item())
        return norm

    monkeypatch.setattr("finetune.training.step.gradient_norm", recorded)
    schedule = plan(total_steps=3)
    _, _, history = train_on_sentences(build(), accelerator, tmp_path, schedule, max_grad_norm=1e-3)
    logged = {entry["step"]: entry["grad_norm"] for entry in history if "loss" in entry}
    assert logged
    assert logged == {step: norms[step - 1] for step in logged}
    assert min(norms) > 1e-3
