"""Compare steps of the trainer with plain steps: one batch, one process, no gradient accumulation.

Run as `python -m tests.support.plain_steps CHECKPOINT FOLDER [CASE ...]`, each process writes its results to FOLDER.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from finetune.data.rows import RawSplit
from finetune.data.sampler import plan_epoch, steps_in_epoch
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer, quiet_libraries
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.fsdp import fsdp_plugin, full_tensor, shard_on_cpus
from finetune.training.snapshot import trained_weights
from finetune.training.trainer import Trainer
from tests.conftest import SENTENCES
from tests.support.helpers import ROLES, plan

ROWS, EPOCHS, SEED = 13, 2, 5
LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
WEIGHTS = {"no": 0.5, "yes": 3.0}
CLIP = 0.05  # far below the norms of the gradients, 1.8 at least
Measurements = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Training settings for the 13 rows; `batch_size` counts the rows of all processes."""

    batch_size: int = 4
    accumulation: int = 1
    lora: bool = False
    strategy: str = "random"
    clip: float | None = None
    class_weights: bool = False
    gradient_checkpointing: bool = False
    problem_type: str = "single_label_classification"
    limited_memory: tuple[int, ...] = ()  # processes with memory for only one row
    different_start: tuple[int, ...] = ()  # processes whose model starts with different weights and buffers


# In batches of 4, the last of the 13 rows is alone in its batch, so that one of two processes has no row.
CASES = {
    "1 batch a step": Case(),
    "2 batches a step": Case(accumulation=2),
    "3 batches a step, the last step has one row": Case(accumulation=3),
    "the short batch comes anywhere": Case(accumulation=3, strategy="group_by_length"),
    "LoRA": Case(batch_size=2, accumulation=3, lora=True),
    "class weights": Case(accumulation=2, class_weights=True),
    "clipped": Case(accumulation=3, clip=CLIP),
    "LoRA, clipped, class weights": Case(batch_size=6, accumulation=2, lora=True, clip=CLIP, class_weights=True),
    "several labels a row": Case(accumulation=2, problem_type="multi_label_classification"),
    "values": Case(accumulation=3, problem_type="regression", clip=CLIP, gradient_checkpointing=True),
    "memory runs out everywhere": Case(accumulation=2, limited_memory=(0, 1)),
    "memory runs out on the second process": Case(accumulation=2, limited_memory=(1,)),
    "the second process starts elsewhere": Case(accumulation=2, different_start=(1,)),
}


def labels_of(problem_type: str) -> np.ndarray:
    numbers = np.arange(ROWS)
    if problem_type == "regression":
        return (numbers % 5) / 2.0
    if problem_type == "multi_label_classification":
        return np.stack([numbers % 2, numbers % 3 == 0], axis=1).astype(np.int64)
    return (numbers % 3 == 0).astype(np.int64)


def classifier_of(checkpoint: Path, case: Case) -> Classifier:
    source = Source(str(checkpoint))
    torch.manual_seed(0)
    return pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(["value"] if case.problem_type == "regression" else list(WEIGHTS), case.problem_type),
        max_length=16,
        lora=LORA if case.lora else None,
    )


def split_of(classifier: Classifier) -> EncodedSplit:
    texts = [" ".join(SENTENCES[n % 6].split()[: 2 + n % 7]) for n in range(ROWS)]
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "rows")
    return encode_split(raw, labels_of(classifier.problem_type), classifier.tokenizer, ["sentence"], 16)


def plain_step(
    model: nn.Module, split: EncodedSplit, rows: np.ndarray, case: Case
) -> tuple[float, dict[str, Tensor], float]:
    """Return the mean loss of the rows in one batch, its gradients, clipped as in the case, and the unclipped norm."""
    ids = [torch.tensor(split.rows[int(row)]["input_ids"]) for row in rows]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    labels = torch.as_tensor(split.labels[rows])
    model_copy = copy.deepcopy(model).eval()
    logits = model_copy(input_ids=padded, attention_mask=mask).logits
    if case.problem_type == "regression":
        loss = F.mse_loss(logits[:, 0], labels.float())
    elif case.problem_type == "multi_label_classification":
        loss = F.binary_cross_entropy_with_logits(logits, labels.float())
    else:
        scale = torch.tensor(list(WEIGHTS.values()))[labels] if case.class_weights else torch.ones(len(rows))
        loss = (F.cross_entropy(logits, labels, reduction="none") * scale).mean()
    trainable = {name: p for name, p in model_copy.named_parameters() if p.requires_grad}
    gradients = dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True))
    norm = float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
    clip_factor = 1.0 if case.clip is None else min(1.0, case.clip / (norm + 1e-6))
    return loss.item(), {name: gradient * clip_factor for name, gradient in gradients.items()}, norm


def gradients_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return the full gradient of every parameter, also if only a subset of the embeddings is trained."""
    parameters = {name.removeprefix("module."): p for name, p in trainer.stepper.model.module.named_parameters()}
    gradients = {name: full_tensor(p.grad).clone() for name, p in parameters.items() if p.grad is not None}
    if (subset := trainer.stepper.model.embeddings) is not None:
        (name,) = [name for name, p in parameters.items() if p is subset.weight]
        gradients[name] = torch.zeros_like(subset.weight).index_copy_(0, subset.ids, subset.rows.grad)
    return gradients


def limit_memory(trainer: Trainer) -> None:
    """Make memory run out in every pass over several rows after the first, when there are gradients to discard."""
    passes: list[int] = []

    def raise_out_of_memory(model: nn.Module, _: Any, inputs: dict[str, Any]) -> None:
        if model.training:  # the copy of the plain step is in eval mode
            passes.append(len(inputs["input_ids"]))
            if len(passes) > 1 and passes[-1] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.classifier.model.register_forward_pre_hook(raise_out_of_memory, with_kwargs=True)


def train_and_compare(checkpoint: Path, case: Case, accelerator: Accelerator) -> Measurements:
    """Train two epochs; return losses, rates, final weights, and the difference of each step from a plain one."""
    classifier = classifier_of(checkpoint, case)
    split = split_of(classifier)
    steps = steps_in_epoch(ROWS, batch_size=case.batch_size, accumulation=case.accumulation)
    schedule = plan(
        batch_size=case.batch_size, accumulation=case.accumulation, steps_per_epoch=steps, epochs=EPOCHS,
        total_steps=EPOCHS * steps, warmup_steps=1,
    )  # fmt: skip
    # A large epsilon makes Adam's step proportional to the gradient. With the default, a gradient that is zero up to
    # rounding, such as that of a key's bias, would move its weight by a full step in a random direction.
    training = TrainingSection(
        learning_rate=1e-2, adam_epsilon=0.1, max_grad_norm=case.clip, train_sampling_strategy=case.strategy,
        class_weights=WEIGHTS if case.class_weights else None, gradient_checkpointing=case.gradient_checkpointing,
    )  # fmt: skip
    if accelerator.process_index in case.different_start:
        with torch.no_grad():
            for parameter in classifier.model.parameters():
                parameter += 1
            for buffer in classifier.model.buffers():
                buffer += 1
    trainer = build_trainer(classifier, split, schedule, Hyperparameters(training, seed=SEED), accelerator)
    if accelerator.process_index in case.limited_memory:
        limit_memory(trainer)
    step_gradients: list[dict[str, Tensor]] = []
    step = trainer.stepper.optimizer.step

    def spy(*arguments: Any, **named: Any) -> None:
        step(*arguments, **named)  # the step scales the gradients
        step_gradients.append(gradients_of(trainer))

    trainer.stepper.optimizer.step = spy
    measured: Measurements = {"losses": [], "plain_losses": [], "rates": [], "norms": [], "distances": []}
    for epoch in range(EPOCHS):
        planned = plan_epoch(
            split.lengths, batch_size=case.batch_size, accumulation=case.accumulation, strategy=case.strategy,
            seed=SEED, epoch=epoch,
        )  # fmt: skip
        assert sorted(np.concatenate([rows for batches in planned for rows in batches])) == list(range(ROWS))
        for batches, (micro_batches, rows) in zip(planned, trainer.epoch_steps(), strict=True):
            with trainer.full_model() as model:
                loss, expected, norm = plain_step(model, split, np.concatenate(batches), case)
            trainer.optimizer_step(micro_batches, rows)
            entry, gradients = trainer.log_entry(), step_gradients.pop()
            assert gradients.keys() == expected.keys()
            measured["losses"].append(entry["loss"])
            measured["plain_losses"].append(loss)
            measured["rates"].append(entry["learning_rate"])
            measured["norms"].append(norm)
            largest = max(float(gradient.abs().max()) for gradient in expected.values())
            difference = max(float((gradients[name] - expected[name]).abs().max()) for name in expected)
            measured["distances"].append(difference / largest)
    measured |= {
        "notes": trainer.messages,
        "rows at a time": trainer.state.micro_batch_rows,
        "share": share(trainer.stepper.model.module),
    }
    measured["buffers"] = dict(classifier.model.named_buffers())
    measured["wrapped"] = trainer.stepper.model.module is not classifier.model
    with trainer.full_model() as model:
        return {**measured, "weights": trained_weights(model)}


def share(model: nn.Module) -> float:
    """Return the fraction of the model's parameters on this process: 1 if the model is not sharded."""
    local_parameters = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() for p in local_parameters) / sum(p.numel() for p in model.parameters())


def main(checkpoint: Path, folder: Path, names: Sequence[str]) -> None:
    """Run the cases (all by default) on this process, and save the results."""
    quiet_libraries()
    datasets.disable_progress_bars()
    plugin = fsdp_plugin(TrainingSection())
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    shard_on_cpus(accelerator, plugin)
    cases = {}
    for name in names or CASES:
        cases[name] = train_and_compare(checkpoint, CASES[name], accelerator)
        accelerator.free_memory()  # under FSDP Accelerate fails if it still has earlier models
    results = {"processes": accelerator.num_processes, "cases": cases}
    torch.save(results, folder / f"{accelerator.num_processes}-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
