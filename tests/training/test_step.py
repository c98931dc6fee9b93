from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from finetune.errors import TrainingError
from finetune.models.classifier import Classifier
from finetune.models.speedups import masks_without_reads
from finetune.recipe.training_section import TrainingSection
from finetune.training import optimizer
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import complete_checkpoints
from finetune.training.nonfinite import MAX_SKIPPED
from finetune.training.snapshot import trained_weights
from tests.support.helpers import FLOAT32, TRAINED, encoded, plan, tiny_classifier
from tests.support.host_reads import HostReads
from tests.support.training import largest_difference, train_on_sentences, without_dropout


@pytest.mark.parametrize(("rows", "size", "accumulation"), [(4, 1, 4), (4, 2, 2), (6, 4, 2)])
def test_micro_batches_equal_one_batch(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, rows: int, size: int, accumulation: int
) -> None:
    # Six rows: in steps of four and two rows, the last with fewer micro-batches; or in one step, whose second
    # micro-batch is half as large as the first. Each example must have the same weight.
    reference, accumulated = without_dropout(build()), without_dropout(build())
    # A large epsilon makes Adam's step proportional to the gradient. With the default, a gradient that is zero up to
    # rounding, such as that of a key's bias, would move its weight by a full step in a random direction.
    common = {"train_sampling_strategy": "random", "max_grad_norm": None, "adam_epsilon": 0.1}
    steps = 6 // rows + bool(6 % rows)
    shape = {"steps_per_epoch": steps, "total_steps": steps, "epochs": 1}
    one_batch = plan(batch_size=rows, accumulation=1, **shape)
    _, _, single_entries = train_on_sentences(reference, accelerator, tmp_path, one_batch, **common)
    _, _, micro_entries = train_on_sentences(
        accumulated, accelerator, tmp_path, plan(batch_size=size, accumulation=accumulation, **shape), **common
    )
    assert [entry["loss"] for entry in micro_entries] == pytest.approx(
        [entry["loss"] for entry in single_entries], rel=FLOAT32
    )
    assert largest_difference(trained_weights(reference.model), trained_weights(accumulated.model)) < TRAINED
    assert largest_difference(trained_weights(reference.model), trained_weights(build().model)) > 1e-3


def test_the_loss_is_the_mean_over_all_rows_of_the_step(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = without_dropout(build())
    with torch.no_grad():
        split = encoded(classifier)
        logits = torch.stack([classifier.base(torch.tensor([ids])).logits[0] for ids in split.rows["input_ids"]])
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(split.labels))
    schedule = plan(batch_size=2, accumulation=3, steps_per_epoch=1, total_steps=1, epochs=1)
    _, _, entries = train_on_sentences(classifier, accelerator, tmp_path, schedule)
    assert entries[0]["loss"] == pytest.approx(float(expected), rel=FLOAT32)


@pytest.mark.parametrize("fused", [True, False], ids=["in AdamW", "before AdamW"])
@pytest.mark.parametrize("max_norm", [1e-3, 1e3, None])
def test_gradients_are_clipped(
    build: Callable[..., Classifier],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    max_norm: float | None,
    fused: bool,
) -> None:
    if not fused:
        monkeypatch.setattr(optimizer, "_FUSED_CLIPPING", ())
    classifier, norms = build(), []
    training = TrainingSection(learning_rate=2e-5, max_grad_norm=max_norm)
    trainer = build_trainer(classifier, encoded(classifier), plan(), Hyperparameters(training, seed=0), accelerator)
    step = trainer.stepper.optimizer.step

    def norm() -> float:
        return torch.cat([p.grad.flatten() for p in trainer.stepper.parameters]).norm().item()

    def spy(*arguments: Any, **named: Any) -> None:
        step(*arguments, **named)  # the step scales the gradients
        norms.append(norm())

    trainer.stepper.optimizer.step = spy
    for micro_batches, rows in trainer.epoch_steps():
        trainer.optimizer_step(micro_batches, rows)
    if max_norm == 1e-3:
        assert norms == pytest.approx([max_norm] * 3, rel=1e-2)
    else:
        assert all(1 < norm < 100 for norm in norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision_weights_are_clipped(
    tiny_bert: Path, accelerator: Accelerator, tmp_path: Path, dtype: torch.dtype
) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.base.to(dtype)
    before = trained_weights(classifier.model)
    train_on_sentences(classifier, accelerator, tmp_path, plan(total_steps=2), max_grad_norm=1.0)
    after = trained_weights(classifier.model)
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_a_step_skipped_by_the_scaler_applies_no_weight_decay(
    build: Callable[..., Classifier], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monkeypatch.setattr(accelerator, "scaler", scaler)
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")  # gradients are divided by the scale before clipping
    training = TrainingSection(learning_rate=1e-2, weight_decay=0.5, lr_scheduler_type="constant")
    trainer = build_trainer(classifier, encoded(classifier), plan(), Hyperparameters(training, seed=0), accelerator)
    skipped = []
    for _ in range(4):
        for micro_batches, rows in trainer.epoch_steps():
            before, factor = trainer.stepper.model.embeddings.rows.detach().clone(), trainer.state.weight_decay_factor
            trainer.optimizer_step(micro_batches, rows)
            skipped.append(torch.equal(trainer.stepper.model.embeddings.rows, before))
            assert (trainer.state.weight_decay_factor == factor) == skipped[-1]
    assert skipped[0]
    assert not skipped[-1]


@pytest.mark.parametrize(
    ("scaler", "changes"),
    [(None, {}), (torch.amp.GradScaler("cpu"), {}), (None, {"rdrop_alpha": 1.0, "contrastive_weight": 0.5})],
    ids=["float32", "fp16", "all losses"],
)
def test_a_step_reads_once_from_the_device(
    build: Callable[..., Classifier],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    scaler: torch.amp.GradScaler | None,
    changes: dict[str, float],
) -> None:
    monkeypatch.setattr(accelerator, "scaler", scaler)
    monkeypatch.setattr(accelerator, "native_amp", scaler is not None)
    # An accelerator trains the full table of embeddings.
    monkeypatch.setattr("finetune.training.build.make_embedding_subset", lambda *arguments: None)
    for accumulation in (1, 3):
        classifier = build()
        schedule = plan(accumulation=accumulation, steps_per_epoch=3 // accumulation)
        training = TrainingSection(learning_rate=1e-3, **changes)
        trainer = build_trainer(
            classifier, encoded(classifier), schedule, Hyperparameters(training, seed=0), accelerator
        )
        steps = 0
        with masks_without_reads(torch.device("cuda")):  # as on an accelerator
            for micro_batches, rows in trainer.epoch_steps():
                assert len(micro_batches) == accumulation
                with HostReads() as reads:
                    trainer.optimizer_step(micro_batches, rows)
                # Loss and norm of the gradient, to see if they are finite; on CUDA copied without waiting for them.
                assert reads.counts == {"to": 1, "tolist": 1}
                steps += 1
        assert steps == 3 // accumulation


def test_a_loss_that_is_not_finite_stops_the_run(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = build()
    with torch.no_grad():
        classifier.base.classifier.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(learning rate 0.01\), rows \d, \d of rows"):
        train_on_sentences(classifier, accelerator, tmp_path, plan())


@pytest.mark.parametrize(("steps", "stops_at"), [(27, MAX_SKIPPED), (3, 3)], ids=["a long run", "every step"])
def test_fp16_gradients_that_are_never_finite_stop_the_run(
    build: Callable[..., Classifier],
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    stops_at: int,
) -> None:
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu"))
    monkeypatch.setattr(accelerator, "native_amp", True)
    classifier = build()
    before = {name: weight.clone() for name, weight in trained_weights(classifier.model).items()}

    def overflow(_: Any, __: Any, output: Any) -> None:
        output.logits.register_hook(lambda gradient: gradient * float("inf"))

    classifier.model.register_forward_hook(overflow)
    message = (
        rf"fp16: the gradient was not finite in {stops_at} consecutive steps, the last at step {stops_at} \(.*bf16"
    )
    with pytest.raises(TrainingError, match=message):
        train_on_sentences(classifier, accelerator, tmp_path, plan(epochs=9, total_steps=steps))
    assert largest_difference(before, trained_weights(classifier.model)) == 0.0


@pytest.mark.parametrize("nonfinite", ["loss", "gradient"])
def test_a_nonfinite_step_changes_no_weight_and_saves_no_checkpoint(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, nonfinite: str
) -> None:
    classifier, before, calls = build(), {}, []

    def make_nonfinite(_: Any, __: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            before.update(trained_weights(classifier.model))
            if nonfinite == "loss":
                output.logits = output.logits * float("nan")
            else:
                output.logits.register_hook(lambda gradient: gradient * float("inf"))
        return output

    classifier.model.register_forward_hook(make_nonfinite)
    message = "the loss is nan" if nonfinite == "loss" else r"the loss is [\d.]+, but its gradient is not finite"
    with pytest.raises(
        TrainingError, match=message + r" at step 3 \(learning rate 0.01\), rows \d, \d of rows; the weights"
    ):
        train_on_sentences(classifier, accelerator, tmp_path, plan(save_every=1))
    assert largest_difference(before, trained_weights(classifier.model)) == 0.0
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-000001", "step-000002"]


def limit_rows(classifier: Classifier, max_rows: int, row_counts: list[int]) -> Classifier:
    """Make the model run out of memory above `max_rows` rows; append the rows of each forward pass to `row_counts`."""

    def fail(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        row_counts.append(len(inputs["input_ids"]))
        if row_counts[-1] > max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    classifier.model.register_forward_pre_hook(fail, with_kwargs=True)
    return classifier


def test_running_out_of_memory_changes_only_the_micro_batches(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    schedule = plan(batch_size=6, steps_per_epoch=1, total_steps=4, epochs=4, save_every=2)
    common = {"max_grad_norm": None, "adam_epsilon": 0.1}  # see test_micro_batches_equal_one_batch
    full = without_dropout(build())
    _, _, expected = train_on_sentences(full, accelerator, tmp_path / "full", schedule, **common)
    row_counts: list[int] = []
    limited = limit_rows(without_dropout(build()), 2, row_counts)
    trainer, _, entries = train_on_sentences(limited, accelerator, tmp_path / "limited", schedule, **common)
    assert row_counts == [6, 3, *[1] * 6, *[1] * 18]  # 6 and 3 are tried once, not at each step
    assert trainer.state.micro_batch_rows == 1
    assert [entry["loss"] for entry in entries] == pytest.approx([entry["loss"] for entry in expected], rel=FLOAT32)
    assert largest_difference(trained_weights(full.model), trained_weights(limited.model)) < TRAINED
    row_counts.clear()
    resumed = limit_rows(without_dropout(build()), 2, row_counts)
    train_on_sentences(
        resumed, accelerator, tmp_path / "resumed", schedule, **common, resume=tmp_path / "limited" / "step-000002"
    )
    assert row_counts == [1] * 12  # a resumed run keeps the limit
    assert largest_difference(trained_weights(limited.model), trained_weights(resumed.model)) == 0.0


def test_a_repeated_step_has_the_same_dropout_masks(build: Callable[..., Classifier], accelerator: Accelerator) -> None:
    schedule, weights = plan(batch_size=2, accumulation=3, steps_per_epoch=1, total_steps=2), []
    # One row at a time from the start, or after memory ran out in the last micro-batch.
    for from_the_start in (True, False):
        classifier, passes = build(), []

        def fail(_: Any, __: Any, inputs: dict[str, Any], passes: list[int] = passes) -> None:
            passes.append(len(inputs["input_ids"]))
            if passes == [2, 2, 2]:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        classifier.model.register_forward_pre_hook(fail, with_kwargs=True)
        training = TrainingSection(learning_rate=1e-2)
        trainer = build_trainer(
            classifier, encoded(classifier), schedule, Hyperparameters(training, seed=5), accelerator
        )
        trainer.state.micro_batch_rows = 1 if from_the_start else None
        for _ in range(2):
            for micro_batches, rows in trainer.epoch_steps():
                trainer.optimizer_step(micro_batches, rows)
        assert passes == [*([] if from_the_start else [2, 2, 2]), *[1] * 12]
        weights.append(trained_weights(classifier.model))
    assert largest_difference(*weights) == 0.0


def test_too_little_memory_for_one_row_is_an_error(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"out of memory in step 1 of training with one row at a time"):
        train_on_sentences(limit_rows(build(), 0, []), accelerator, tmp_path, plan())
