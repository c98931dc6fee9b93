from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from finetune.errors import TrainingError
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.pipeline.train_stage import training_result
from finetune.recipe import TrainingSection
from finetune.signals import Interrupted, stop_after_step
from finetune.training import optimizer
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import complete_checkpoints, find_checkpoint
from finetune.training.nonfinite import MAX_SKIPPED, SkippedSteps, StepInfo
from finetune.training.optimizer import build_optimizer, class_weights
from finetune.training.schedule import Plan
from finetune.training.snapshot import trained_weights
from finetune.training.trainer import Evaluation, Trainer
from tests.support.helpers import FLOAT32, ROLES, TRAINED, encoded, plan, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.1, roles=ROLES)


def train(
    classifier: Classifier,
    accelerator: Accelerator,
    folder: Path,
    schedule: Plan,
    *,
    evaluations: list[float] | list[dict[str, float | None]] | None = None,
    best_metric: str = "loss",
    resume: Path | None = None,
    stop_after: int | None = None,
    **changes: Any,
) -> tuple[Trainer, str, list[dict[str, Any]]]:
    """Train on the six sentences; `evaluations` are what the evaluations are made to find, losses or all values."""
    training = TrainingSection(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant").model_copy(
        update=changes
    )
    trainer = build_trainer(classifier, encoded(classifier), schedule, Hyperparameters(training, seed=5), accelerator)
    if resume is not None:
        trainer.resume(resume)
    entries: list[dict[str, Any]] = []
    found = iter(evaluations or [])

    def evaluate() -> dict[str, float | None]:
        values = next(found)
        return values if isinstance(values, dict) else {"loss": values}

    def log(entry: dict[str, Any]) -> None:
        entries.append(entry)
        if stop_after is not None and entry["step"] > stop_after:
            raise InterruptedError

    reason = trainer.fit(folder, evaluation=Evaluation(evaluate, best_metric) if evaluations else None, log=log)
    return trainer, reason, entries


def without_dropout(classifier: Classifier) -> Classifier:
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in classifier.base.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    return classifier


@pytest.fixture
def build(tiny_bert: Path) -> Callable[..., Classifier]:
    def make(lora: Lora | None = None) -> Classifier:
        torch.manual_seed(0)
        return tiny_classifier(tiny_bert, lora=lora)

    return make


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(("rows", "size", "accumulation"), [(4, 1, 4), (4, 2, 2), (6, 4, 2)])
def test_micro_batches_equal_one_batch(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, rows: int, size: int, accumulation: int
) -> None:
    # Six rows: in steps of four and two rows, the last with fewer micro-batches; or in one step, whose second
    # micro-batch is half as large as the first. Each example must weigh the same.
    whole, parts = without_dropout(build()), without_dropout(build())
    # A large epsilon makes Adam's step follow the gradient's size: with the usual one, a gradient that is zero but
    # for rounding, such as that of a key's bias, would move its weight by a whole step in either direction.
    common = {"train_sampling_strategy": "random", "max_grad_norm": None, "adam_epsilon": 0.1}
    steps = 6 // rows + bool(6 % rows)
    shape = {"steps_per_epoch": steps, "total_steps": steps, "epochs": 1}
    _, _, one = train(whole, accelerator, tmp_path, plan(batch_size=rows, accumulation=1, **shape), **common)
    _, _, many = train(
        parts, accelerator, tmp_path, plan(batch_size=size, accumulation=accumulation, **shape), **common
    )
    assert [entry["loss"] for entry in many] == pytest.approx([entry["loss"] for entry in one], rel=FLOAT32)
    assert largest_difference(trained_weights(whole.model), trained_weights(parts.model)) < TRAINED
    assert largest_difference(trained_weights(whole.model), trained_weights(build().model)) > 1e-3


def test_the_loss_is_the_mean_over_all_rows_of_the_step(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = without_dropout(build())
    with torch.no_grad():
        split = encoded(classifier)
        logits = torch.stack([classifier.base(torch.tensor([ids])).logits[0] for ids in split.rows["input_ids"]])
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(split.labels))
    schedule = plan(batch_size=2, accumulation=3, steps_per_epoch=1, total_steps=1, epochs=1)
    _, _, entries = train(classifier, accelerator, tmp_path, schedule)
    assert entries[0]["loss"] == pytest.approx(float(expected), rel=FLOAT32)


def test_biases_and_norms_are_not_decayed(build: Callable[..., Classifier]) -> None:
    model = build().model
    decayed, plain = build_optimizer(
        dict(model.named_parameters()), TrainingSection(learning_rate=2e-5, weight_decay=0.1)
    ).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in plain["params"])
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_the_learning_rate_warms_up_and_decays(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    _, _, entries = train(build(), accelerator, tmp_path, plan(warmup_steps=2), lr_scheduler_type="linear")
    assert [entry["learning_rate"] for entry in entries] == pytest.approx([5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3, 0.0])


@pytest.mark.parametrize("within", [True, False], ids=["within AdamW", "before"])
@pytest.mark.parametrize("most", [1e-3, 1e3, None])
def test_gradients_are_clipped(
    build: Callable[..., Classifier],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    most: float | None,
    within: bool,
) -> None:
    if not within:
        monkeypatch.setattr(optimizer, "_FUSED_CLIPPING", ())
    classifier, norms = build(), []
    training = TrainingSection(learning_rate=2e-5, max_grad_norm=most)
    trainer = build_trainer(classifier, encoded(classifier), plan(), Hyperparameters(training, seed=0), accelerator)
    step = trainer.stepper.optimizer.step

    def norm() -> float:
        return torch.cat([p.grad.flatten() for p in trainer.stepper.parameters]).norm().item()

    def spy(*arguments: Any, **named: Any) -> None:
        step(*arguments, **named)  # which shrinks the gradients
        norms.append(norm())

    trainer.stepper.optimizer.step = spy
    for micro_batches, rows in trainer.epoch_steps():
        trainer.optimizer_step(micro_batches, rows)
    if most == 1e-3:
        assert norms == pytest.approx([most] * 3, rel=1e-2)
    else:
        assert all(1 < norm < 100 for norm in norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_clipped(
    tiny_bert: Path, accelerator: Accelerator, tmp_path: Path, dtype: torch.dtype
) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.base.to(dtype)
    before = trained_weights(classifier.model)
    train(classifier, accelerator, tmp_path, plan(total_steps=2), max_grad_norm=1.0)
    after = trained_weights(classifier.model)
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_a_step_that_the_scaler_leaves_out_decays_nothing(
    build: Callable[..., Classifier], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monkeypatch.setattr(accelerator, "scaler", scaler)
    monkeypatch.setattr(accelerator, "native_amp", True)
    training = TrainingSection(learning_rate=1e-2, weight_decay=0.5, lr_scheduler_type="constant")
    trainer = build_trainer(classifier, encoded(classifier), plan(), Hyperparameters(training, seed=0), accelerator)
    left_out = []
    for _ in range(4):
        for micro_batches, rows in trainer.epoch_steps():
            before, share = trainer.stepper.model.embeddings.rows.detach().clone(), trainer.state.weight_decay_factor
            trainer.optimizer_step(micro_batches, rows)
            left_out.append(torch.equal(trainer.stepper.model.embeddings.rows, before))
            assert (trainer.state.weight_decay_factor == share) == left_out[-1]
    assert left_out[0]
    assert not left_out[-1]


def test_the_best_weights_are_left_and_patience_ends_it(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier, seen = build(), {}
    schedule = plan(epochs=9, total_steps=27, patience=2, save_every=0)
    trainer, reason, entries = train(classifier, accelerator, tmp_path, schedule, evaluations=[0.9, 0.5, 0.7, 0.6, 0.1])
    assert reason == "no better evaluation in 2"
    assert (trainer.state.step, trainer.state.best_step, trainer.state.best_value) == (12, 6, 0.5)
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [3, 6, 9, 12]
    for name in ("step-000006/weights", "step-000012/best"):
        seen[name] = load_file(tmp_path / f"{name}.safetensors")
        assert largest_difference(seen[name], trained_weights(classifier.model)) == 0.0
    result = training_result(trainer, reason, "loss")
    assert (result.steps, result.best_step, result.speed.train_samples_per_second > 0) == (12, 6, True)


@pytest.mark.parametrize(
    ("metric", "best"), [([0.5, 0.5, 0.5], 6), ([None, None, None], 6), ([None, 0.1, None], 6), ([0.2, None, None], 3)]
)
def test_a_tie_and_an_undefined_metric_leave_the_choice_to_the_loss(
    build: Callable[..., Classifier],
    accelerator: Accelerator,
    tmp_path: Path,
    metric: list[float | None],
    best: int,
) -> None:
    classifier = build()
    found = [{"loss": loss, "pearson": value} for loss, value in zip([0.9, 0.5, 0.7], metric, strict=True)]
    schedule = plan(epochs=3, total_steps=9, save_every=0)
    trainer, reason, entries = train(
        classifier, accelerator, tmp_path, schedule, evaluations=found, best_metric="pearson"
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
    whole = build(lora)
    train(whole, accelerator, tmp_path / "whole", schedule, **common, evaluations=losses)
    broken = build(lora)
    with pytest.raises(InterruptedError):
        train(broken, accelerator, tmp_path / "broken", schedule, **common, evaluations=losses, stop_after=stop)
    checkpoint = find_checkpoint("auto", tmp_path / "broken").folder
    assert checkpoint is not None
    assert checkpoint.name == f"step-{stop:06d}"
    resumed = build(lora)
    torch.manual_seed(77)
    rest = {"evaluations": losses[stop // 3 :], "resume": checkpoint}
    trainer, _, entries = train(resumed, accelerator, tmp_path / "resumed", schedule, **common, **rest)
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(stop + 1, 10))
    assert trainer.state.best_step == 3
    assert largest_difference(trained_weights(resumed.model), trained_weights(whole.model)) == 0.0
    last = [
        torch.load(tmp_path / name / "step-000009" / "optimizer.pt", weights_only=True) for name in ("whole", "resumed")
    ]
    for one, two in zip(*(found["optimizer"]["state"].values() for found in last), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_loss_that_is_not_finite_stops_the_run(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = build()
    with torch.no_grad():
        classifier.base.classifier.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(learning rate 0.01\), rows \d, \d of rows"):
        train(classifier, accelerator, tmp_path, plan())


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
    said = rf"fp16: the gradient was not finite in {stops_at} consecutive steps, the last at step {stops_at} \(.*bf16"
    with pytest.raises(TrainingError, match=said):
        train(classifier, accelerator, tmp_path, plan(epochs=9, total_steps=steps))
    assert largest_difference(before, trained_weights(classifier.model)) == 0.0


def step_info(step: int) -> StepInfo:
    return StepInfo(step, 0.1, np.array([1]), "rows")


def test_fp16_may_skip_steps_now_and_then() -> None:
    skipped = SkippedSteps()
    for step in range(1, 3 * MAX_SKIPPED + 2):
        skipped.record(step % MAX_SKIPPED != 0, step_info(step))
    skipped.finish()


def test_fp16_may_skip_the_last_step_of_a_run_that_was_resumed_and_the_one_of_a_dry_run() -> None:
    resumed, dry = SkippedSteps(), SkippedSteps()
    for skipped, step in ((resumed, 40), (dry, 1)):
        skipped.record(True, step_info(step))
        skipped.finish()
    dry.record(True, step_info(2))
    with pytest.raises(
        TrainingError, match="fp16: the gradient was not finite in 2 consecutive steps, the last at step 2"
    ):
        dry.finish()


def test_class_weights() -> None:
    labels, names = torch.tensor([0, 0, 0, 1]), ["no", "yes"]
    assert class_weights(None, labels, names) is None
    balanced = class_weights("balanced", labels, names)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([2 / 3, 2.0])
    named = class_weights({"yes": 3.0}, labels, names)
    assert named is not None
    assert named.tolist() == [1.0, 3.0]
    with pytest.raises(TrainingError, match=r"class_weights: maybe is not a label; the labels are no, yes"):
        class_weights({"maybe": 1.0}, labels, names)


def test_checkpoints_of_another_model_are_refused(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    train(build(LORA), accelerator, tmp_path, plan(save_every=0))
    (newest,) = complete_checkpoints(tmp_path)[-1:]
    with pytest.raises(TrainingError, match="of another model or LoRA setting"):
        train(build(replace(LORA, r=3)), accelerator, tmp_path / "other", plan(), resume=newest)
    with pytest.raises(TrainingError, match=r"differs from this one:\n  trained words: was none, now 19"):
        train(build(), accelerator, tmp_path / "other", plan(), resume=newest)


def short_of_memory(classifier: Classifier, most: int, tried: list[int]) -> Classifier:
    """Let the model raise what torch raises for more than `most` rows."""

    def refuse(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    classifier.model.register_forward_pre_hook(refuse, with_kwargs=True)
    return classifier


def test_memory_that_runs_out_changes_nothing_but_the_parts(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    schedule = plan(batch_size=6, steps_per_epoch=1, total_steps=4, epochs=4, save_every=2)
    common = {"max_grad_norm": None, "adam_epsilon": 0.1}  # see test_micro_batches_equal_one_batch
    whole = without_dropout(build())
    _, _, expected = train(whole, accelerator, tmp_path / "whole", schedule, **common)
    tried: list[int] = []
    short = short_of_memory(without_dropout(build()), 2, tried)
    trainer, _, entries = train(short, accelerator, tmp_path / "short", schedule, **common)
    assert tried == [6, 3, *[1] * 6, *[1] * 18]  # 6, 3, 1: tried once, not at each step
    assert trainer.state.micro_batch_rows == 1
    assert [entry["loss"] for entry in entries] == pytest.approx([entry["loss"] for entry in expected], rel=FLOAT32)
    assert largest_difference(trained_weights(whole.model), trained_weights(short.model)) < TRAINED
    tried.clear()
    again = short_of_memory(without_dropout(build()), 2, tried)
    train(again, accelerator, tmp_path / "again", schedule, **common, resume=tmp_path / "short" / "step-000002")
    assert tried == [1] * 12  # a run that goes on has the same shape
    assert largest_difference(trained_weights(short.model), trained_weights(again.model)) == 0.0


def test_a_step_that_is_done_again_drops_what_it_would_have_dropped(
    build: Callable[..., Classifier], accelerator: Accelerator
) -> None:
    schedule, weights = plan(batch_size=2, accumulation=3, steps_per_epoch=1, total_steps=2), []
    for planned in (True, False):  # in parts of one row from the start; or once memory ran out in the last batch
        classifier, passes = build(), []

        def refuse(_: Any, __: Any, inputs: dict[str, Any], passes: list[int] = passes) -> None:
            passes.append(len(inputs["input_ids"]))
            if passes == [2, 2, 2]:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        classifier.model.register_forward_pre_hook(refuse, with_kwargs=True)
        training = TrainingSection(learning_rate=1e-2)
        trainer = build_trainer(
            classifier, encoded(classifier), schedule, Hyperparameters(training, seed=5), accelerator
        )
        trainer.state.micro_batch_rows = 1 if planned else None
        for _ in range(2):
            for micro_batches, rows in trainer.epoch_steps():
                trainer.optimizer_step(micro_batches, rows)
        assert passes == [*([] if planned else [2, 2, 2]), *[1] * 12]
        weights.append(trained_weights(classifier.model))
    assert largest_difference(*weights) == 0.0


def test_memory_for_no_row_is_a_message(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"out of memory in step 1 of training with one row at a time"):
        train(short_of_memory(build(), 0, []), accelerator, tmp_path, plan())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_weights_and_checkpoints(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, where: str
) -> None:
    classifier, before, calls = build(), {}, []

    def poison(_: Any, __: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            before.update(trained_weights(classifier.model))
            if where == "loss":
                output.logits = output.logits * float("nan")
            else:
                output.logits.register_hook(lambda gradient: gradient * float("inf"))
        return output

    classifier.model.register_forward_hook(poison)
    said = "the loss is nan" if where == "loss" else r"the loss is [\d.]+, but its gradient is not finite"
    with pytest.raises(
        TrainingError, match=said + r" at step 3 \(learning rate 0.01\), rows \d, \d of rows; the weights"
    ):
        train(classifier, accelerator, tmp_path, plan(save_every=1))
    assert largest_difference(before, trained_weights(classifier.model)) == 0.0
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-000001", "step-000002"]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_signal_saves_and_the_history_goes_on_as_if_unbroken(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path, lora: Lora | None
) -> None:
    schedule = plan(epochs=3, total_steps=9, log_every=4)  # saves nothing of itself
    whole = build(lora)
    _, _, expected = train(whole, accelerator, tmp_path / "whole", schedule)
    broken, calls = build(lora), []

    def signalled(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    broken.model.register_forward_hook(signalled)
    entries: list[dict[str, Any]] = []
    trainer = build_trainer(
        broken,
        encoded(broken),
        schedule,
        Hyperparameters(TrainingSection(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant"), seed=5),
        accelerator,
    )
    said = rf"stopped by SIGTERM after step 6 of 9, saved in {tmp_path}"
    with stop_after_step(is_main_process=False) as request, pytest.raises(Interrupted, match=said):
        trainer.fit(tmp_path, log=entries.append, stop_request=request)  # fmt: skip
    (saved,) = complete_checkpoints(tmp_path)
    assert saved.name == "step-000006"
    resumed = build(lora)
    _, _, rest = train(resumed, accelerator, tmp_path / "resumed", schedule, resume=saved)
    for entry in (*expected, *entries, *rest):
        assert entry.pop("samples_per_second") > 0
    assert [*entries, *rest] == expected  # the mean at step 8 is over steps 5 to 8
    assert [entry["step"] for entry in expected] == [4, 8, 9]
    assert largest_difference(trained_weights(resumed.model), trained_weights(whole.model)) == 0.0


def test_a_signal_in_the_last_evaluation_is_heard(
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

    said = rf"stopped by SIGTERM after step 6 of 6, saved in {tmp_path}"
    with stop_after_step(is_main_process=False) as request, pytest.raises(Interrupted, match=said):
        trainer.fit(tmp_path, evaluation=Evaluation(evaluate), stop_request=request)  # fmt: skip
    assert evaluations == [3, 6]
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["step-000006"]
