"""The training objective: finetune/training/objective.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.losses import divergence, per_example_loss
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.trainer import Trainer
from tests.support.helpers import FLOAT32, encoded, plan
from tests.support.training import LORA, train_on_sentences, without_dropout


def trainer_of(classifier: Classifier, accelerator: Accelerator, **changes: Any) -> Trainer:
    training = TrainingSection(learning_rate=1e-2, **changes)
    return build_trainer(
        classifier,
        encoded(classifier),
        plan(batch_size=6, steps_per_epoch=1),
        Hyperparameters(training, seed=0),
        accelerator,
    )


def test_r_drop_adds_the_divergence_of_two_passes(build: Callable[..., Classifier], accelerator: Accelerator) -> None:
    trainer = trainer_of(build(), accelerator, rdrop_alpha=3.0)
    ((batch,), _) = next(trainer.epoch_steps())
    model = trainer.stepper.model
    model.module.train()
    torch.manual_seed(4)
    losses = trainer.stepper.objective.losses(model, batch)
    torch.manual_seed(4)
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.inputs.items()}
    first, second = model.logits(twice).chunk(2)
    assert not torch.allclose(first, second)  # the dropout masks differ
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    both = [F.kl_div(q, p, reduction="none", log_target=True).sum(-1) for p, q in ((log_p, log_q), (log_q, log_p))]
    cross_entropy = (
        F.nll_loss(log_p, batch.labels, reduction="none") + F.nll_loss(log_q, batch.labels, reduction="none")
    ) / 2
    torch.testing.assert_close(losses, cross_entropy + 3.0 * (both[0] + both[1]) / 2)
    assert losses.shape == (6,)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_r_drop_has_the_divergence_of_the_problem_type(
    build: Callable[..., Classifier], accelerator: Accelerator, problem_type: str
) -> None:
    trainer = trainer_of(build(), accelerator, rdrop_alpha=2.0)
    ((batch,), _) = next(trainer.epoch_steps())
    generator = torch.Generator().manual_seed(0)
    columns = 1 if problem_type == "regression" else 2
    logits = torch.randn(12, columns, generator=generator)
    labels = torch.rand(6, generator=generator) if columns == 1 else torch.randint(2, (6, 2), generator=generator)

    class FixedLogits:
        def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return logits

    objective = replace(trainer.stepper.objective, problem_type=problem_type)
    losses = objective.losses(FixedLogits(), replace(batch, labels=labels))  # type: ignore[arg-type]
    plain = [per_example_loss(part, labels, problem_type) for part in logits.chunk(2)]
    first, second = logits.chunk(2)
    both = divergence(first, second, problem_type) + divergence(second, first, problem_type)
    torch.testing.assert_close(losses, (plain[0] + plain[1]) / 2 + both)


def test_r_drop_keeps_micro_batches_when_memory_runs_out(
    build: Callable[..., Classifier], accelerator: Accelerator, tmp_path: Path
) -> None:
    # Without dropout both passes are equal, so R-Drop changes nothing.
    schedule, common = plan(batch_size=6, steps_per_epoch=1, total_steps=2), {"adam_epsilon": 0.1}
    _, _, expected = train_on_sentences(without_dropout(build()), accelerator, tmp_path, schedule, **common)
    classifier, row_counts = without_dropout(build()), []

    def fail(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        row_counts.append(len(inputs["input_ids"]))
        if row_counts[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    classifier.model.register_forward_pre_hook(fail, with_kwargs=True)
    trainer, _, entries = train_on_sentences(classifier, accelerator, tmp_path, schedule, **common, rdrop_alpha=5.0)
    assert row_counts == [12, 6, *[2] * 6, *[2] * 6]
    assert trainer.state.micro_batch_rows == 1
    assert [entry["loss"] for entry in entries] == pytest.approx([entry["loss"] for entry in expected], rel=FLOAT32)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_contrastive_term_compares_the_states_of_a_batch(
    build: Callable[..., Classifier], accelerator: Accelerator, lora: Lora | None
) -> None:
    weight, temperature = 0.5, 0.3
    trainer = trainer_of(build(lora), accelerator, contrastive_weight=weight, contrastive_temperature=temperature)
    ((batch,), _) = next(trainer.epoch_steps())
    model, base = trainer.stepper.model, trainer.classifier.base
    model.module.eval()  # without dropout the input of the classifier is the output of the pooler
    losses = trainer.stepper.objective.losses(model, batch)
    pooled = base.bert(**batch.inputs).pooler_output
    states = pooled / pooled.norm(dim=-1, keepdim=True)
    labels = batch.labels.tolist()
    expected = []
    for i in range(6):
        similarities = {a: (states[i] @ states[a] / temperature).exp() for a in range(6) if a != i}
        positives = [p for p in similarities if labels[p] == labels[i]]
        assert len(positives) == 2
        terms = [(similarities[p] / sum(similarities.values())).log() for p in positives]
        expected.append(-sum(terms) / len(positives))
    plain = F.cross_entropy(model.logits(batch.inputs), batch.labels, reduction="none")
    torch.testing.assert_close(losses, plain + weight * torch.stack(expected))
    losses.sum().backward()
    assert all(p.grad is not None for p in trainer.stepper.parameters)
    assert not [m for m in model.module.modules() if m._forward_pre_hooks]
