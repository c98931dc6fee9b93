"""The recipe key `training.padding_free`: when it is on, and training with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.data.batching import LocalBatch, load_batches, split_batch
from finetune.data.windows import WINDOW_COUNTS
from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.padding_free import ROW_LENGTHS
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.padding_free_setting import choose_padding_free, with_row_lengths
from finetune.training.trainer import Trainer
from tests.support.families import build, save_checkpoint
from tests.support.frozen_layers import cached, frozen
from tests.support.helpers import ROLES, TRAINED, encoded, plan, tiny_classifier


@pytest.mark.parametrize(
    ("setting", "strategy", "expected"),
    [
        (False, "random", False),
        (True, "group_by_length", True),
        ("auto", "group_by_length", False),
        ("auto", "random", True),
        ("auto", "sequential", True),
    ],
)
def test_when_it_is_on(tiny_bert: Path, accelerator: Accelerator, setting: Any, strategy: Any, expected: bool) -> None:
    training = TrainingSection(padding_free=setting, train_sampling_strategy=strategy)
    padding_free, lines = choose_padding_free(tiny_classifier(tiny_bert), training, accelerator)
    assert (padding_free is not None, lines) == (expected, [])


def test_models_that_need_padding(tmp_path: Path, accelerator: Accelerator) -> None:
    classifier = build(save_checkpoint("xlm", tmp_path))
    message = (
        "training.padding_free is true, but .* 'xlm' model: its layers .* take no attention_mask.*; remove the key"
    )
    with pytest.raises(ModelError, match=message):
        choose_padding_free(classifier, TrainingSection(padding_free=True), accelerator)
    automatic = TrainingSection(padding_free="auto", train_sampling_strategy="random")
    padding_free, (line,) = choose_padding_free(classifier, automatic, accelerator)
    assert padding_free is None
    assert line.startswith("Batches are padded (training.padding_free: auto) for this 'xlm' model: its layers")


def test_padded_attention_cannot_be_compiled(tmp_path: Path, accelerator: Accelerator) -> None:
    training = TrainingSection(padding_free=True, torch_compile=True)
    with pytest.raises(ModelError, match="'mpnet' model: its attention modules need padded states"):
        choose_padding_free(build(save_checkpoint("mpnet", tmp_path)), training, accelerator)


def train(classifier: Classifier, accelerator: Accelerator, split: Any = None, **options: Any) -> Trainer:
    """Train two epochs without dropout in float64; return the trainer."""
    for module in classifier.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    settings = {"learning_rate": 1e-2, "adam_epsilon": 0.1, "train_sampling_strategy": "random", **options}
    trainer = build_trainer(
        classifier, split or encoded(classifier), plan(), Hyperparameters(TrainingSection(**settings), 0), accelerator
    )
    for _ in range(2):
        for micro_batches, rows in trainer.epoch_steps():
            trainer.optimizer_step(micro_batches, rows)
    return trainer


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    with trainer.full_model() as model:
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("lora", "options"),
    [
        (None, {}),
        (None, {"gradient_checkpointing": True}),
        (None, {"rdrop_alpha": 1.0}),
        (Lora(2, 4, 0.0, ROLES), {}),
    ],
    ids=["full", "computed again", "r-drop", "lora"],
)
def test_training_gives_the_same_weights(
    tiny_bert: Path, accelerator: Accelerator, lora: Lora | None, options: dict[str, Any]
) -> None:
    results = []
    for padding_free in (False, True):
        torch.manual_seed(0)
        trainer = train(tiny_classifier(tiny_bert, lora=lora), accelerator, padding_free=padding_free, **options)
        results.append(weights_of(trainer))
        packed = trainer.stepper.model.padding_free
        assert (packed is not None) == padding_free
        # Packed rows in the trial, and in training; layers that are computed again do not count twice.
        assert packed is None or packed.packed_calls > 2 * 3
    assert max(float((results[0][name] - results[1][name]).abs().max()) for name in results[0]) < TRAINED


def test_training_with_cached_frozen_layers(tiny_bert: Path, accelerator: Accelerator) -> None:
    results = []
    for padding_free in (False, True):
        torch.manual_seed(0)
        classifier = frozen(tiny_classifier(tiny_bert))
        options = {"freeze_embeddings": True, "freeze_layers": 1, "cache_frozen_layers": True}
        with cached(classifier, accelerator=accelerator) as splits:
            trainer = train(classifier, accelerator, splits["train"], padding_free=padding_free, **options)
        results.append(weights_of(trainer))
        packed = trainer.stepper.model.padding_free
        assert packed is None or packed.packed_calls > 3
    assert max(float((results[0][name] - results[1][name]).abs().max()) for name in results[0]) < TRAINED


@pytest.mark.parametrize("process", [0, 1])
def test_row_lengths_are_those_of_this_process(tiny_bert: Path, process: int) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)
    gpu: Any = SimpleNamespace(device=torch.device("cuda"), process_index=process, num_processes=2)
    for rows in (np.array([0, 5, 4]), np.array([3])):
        (batch,) = load_batches(
            split, [rows], classifier.tokenizer, device=torch.device("cpu"), process=process, processes=2
        )
        marked = with_row_lengths(batch, split.lengths[rows], gpu)
        assert torch.equal(marked.inputs[ROW_LENGTHS], batch.inputs["attention_mask"].sum(1))
        parts = [part.inputs for part in split_batch(marked, 1)]
        assert [int(part[ROW_LENGTHS]) for part in parts] == [int(part["attention_mask"].sum()) for part in parts]
    windows = LocalBatch(batch.inputs | {WINDOW_COUNTS: torch.tensor([2])}, batch.labels, batch.weights)
    assert ROW_LENGTHS not in with_row_lengths(windows, split.lengths[rows], gpu).inputs
    cpu: Any = SimpleNamespace(device=torch.device("cpu"), process_index=process, num_processes=2)
    assert with_row_lengths(batch, split.lengths[rows], cpu) is batch


def test_row_lengths_are_not_an_input_of_the_model(tiny_bert: Path, accelerator: Accelerator) -> None:
    model = train(tiny_classifier(tiny_bert), accelerator, padding_free=True).stepper.model
    classifier = tiny_classifier(tiny_bert)
    (batch,) = load_batches(encoded(classifier), [np.arange(6)], classifier.tokenizer, device=torch.device("cpu"))
    lengths = batch.inputs["attention_mask"].sum(1)
    expected = model.logits(batch.inputs)
    assert torch.equal(model.logits({**batch.inputs, ROW_LENGTHS: lengths}), expected)
