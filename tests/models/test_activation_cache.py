"""Cached frozen layers: the same training and scores as without the cache, and which models are rejected."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from finetune.data.batching import load_batches
from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError
from finetune.evaluation.prediction import predict
from finetune.models import activation_cache, speedups
from finetune.models.architectures import FAMILIES, family_of
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing, freeze
from finetune.models.frozen_encoder import FrozenEncoder
from finetune.models.speedups import first_token_only
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import find_checkpoint
from finetune.training.snapshot import trained_weights
from tests.support.families import build, save_checkpoint
from tests.support.frozen_layers import assert_restored, cached, frozen
from tests.support.helpers import (
    FLOAT32,
    TRAINED,
    assert_equal_up_to_rounding,
    encoded,
    plan,
    tiny_classifier,
)

CPU = torch.device("cpu")
# Families that cannot use the cache, and why. albert is not listed: its layers share weights and cannot be frozen.
REJECTED = {
    "convbert": r"its logits differ by",
    "flaubert": r"its logits differ by",
    "nystromformer": r"its logits differ by",
    "squeezebert": r"its layers do not return one state per token",
    "xlm": r"its logits differ by",
}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty temporary folder, to check which files remain in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def without_dropout(classifier: Classifier) -> Classifier:
    classifier.model.eval()
    classifier.model.train = lambda mode=True: classifier.model  # type: ignore[method-assign]
    return classifier


def train(
    classifier: Classifier, split: EncodedSplit, accelerator: Accelerator, folder: Path, resume: Path | None = None
) -> dict[str, Tensor]:
    """Train three epochs of two steps of two uneven micro-batches."""
    schedule = plan(accumulation=2, steps_per_epoch=2, epochs=3, total_steps=6, save_every=1)
    settings = TrainingSection(learning_rate=1e-2, adam_epsilon=0.1, train_sampling_strategy="group_by_length")
    trainer = build_trainer(classifier, split, schedule, Hyperparameters(settings, seed=5), accelerator)
    if resume is not None:
        trainer.resume(resume)
    trainer.fit(folder)
    return trained_weights(classifier.model)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def fail_if_run(module: object, *args: Any) -> None:
    raise AssertionError("a frozen module was run")


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - REJECTED.keys() - {"albert"}))
def test_training_is_the_same_as_without_the_cache(family: str, accelerator: Accelerator, tmp_path: Path) -> None:
    folder = save_checkpoint(family, tmp_path / "model")
    uncached, cached_model = (without_dropout(frozen(build(folder))) for _ in range(2))
    before = trained_weights(uncached.model)
    expected = train(uncached, encoded(uncached), accelerator, tmp_path / "plain")
    path = family_of(cached_model.base.config).layer_path(cached_model.base.config, 0)
    encoder = cached_model.base.base_model
    parts = [module for module in encoder.get_submodule(path).modules() if not list(module.children())]
    with cached(cached_model, accelerator=accelerator) as splits, ExitStack() as stack:
        stack.enter_context(first_token_only(cached_model.base))  # checked on the full model, before training
        for module in parts:
            stack.callback(module.register_forward_pre_hook(fail_if_run).remove)
        look_up, size = nn.functional.embedding, cached_model.base.config.vocab_size
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(speedups, "_reads_first_token", lambda *args: False)
        patch.setattr(
            nn.functional,
            "embedding",
            lambda x, w, *a, **k: fail_if_run(w) if len(w) == size else look_up(x, w, *a, **k),
        )
        result = train(cached_model, splits["train"], accelerator, tmp_path / "cached")
    assert len(parts) > 3
    assert largest_difference(before, expected) > 1e-3
    # The cache computes states in other batches, so sums have another order. Weights are up to 2, and a step is a tenth
    # of the gradient (see TRAINED).
    assert largest_difference(result, expected) < TRAINED
    assert cached_model.model.state_dict().keys() == uncached.model.state_dict().keys()


@pytest.mark.parametrize("family", sorted(REJECTED))
def test_families_that_need_their_lower_layers_are_rejected(family: str, tmp_path: Path) -> None:
    classifier = frozen(build(save_checkpoint(family, tmp_path / "model")))
    with (
        pytest.raises(ModelError, match=f"this '{family}' model: .*{REJECTED[family]}.*; remove the key"),
        cached(classifier),
    ):
        pass
    assert_restored(classifier)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_scores_are_bit_identical(tiny_bert: Path, accelerator: Accelerator, layers: int, precision: str) -> None:
    classifier = frozen(tiny_classifier(tiny_bert), layers)
    if precision == "bfloat16":
        classifier.model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16) if precision == "mixed" else nullcontext():
        uncached = predict(classifier, encoded(classifier), batch_size=4, accelerator=accelerator)
        with cached(classifier, layers, accelerator) as splits:
            # Cached and scored in the same batches.
            result = predict(classifier, splits["validation"], batch_size=4, accelerator=accelerator)
    assert splits["validation"].states.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    if layers == 1:
        assert torch.equal(result.logits, uncached.logits)
    # With two layers the cache contains all tokens of the last layer, while scoring computes only the first token.
    # bfloat16 has 8 significant bits (a relative error of 0.004), and logits are up to 2.
    assert_equal_up_to_rounding(result.logits, uncached.logits, FLOAT32 if precision == "float32" else 3e-2)


def test_the_check_runs_without_mixed_precision(
    tiny_bert: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, check, autocast_states = frozen(tiny_classifier(tiny_bert)), activation_cache.check, []

    def check_and_record(part: FrozenEncoder, *rest: Any) -> None:
        handle = part.model.register_forward_pre_hook(
            lambda *_: autocast_states.append(torch.is_autocast_enabled("cpu"))
        )
        check(part, *rest)
        handle.remove()

    monkeypatch.setattr(activation_cache, "check", check_and_record)
    with torch.autocast("cpu", torch.bfloat16), cached(classifier, accelerator=accelerator, write=False):
        pass
    assert len(autocast_states) > 6  # the full batch, and the states of each row
    assert not any(autocast_states)


def test_the_frozen_part_has_no_dropout(tiny_bert: Path) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))
    states: list[Tensor] = []
    with cached(classifier) as splits:
        layer = classifier.base.bert.encoder.layer[1]
        layer.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        for _ in range(2):
            (batch,) = load_batches(splits["train"], [np.arange(6)], classifier.tokenizer, device=CPU)
            classifier.model.train()(**batch.inputs)
    assert torch.equal(*states)


def test_a_resumed_run_is_bit_identical(tiny_bert: Path, accelerator: Accelerator, tmp_path: Path) -> None:
    def new_classifier() -> Classifier:
        torch.manual_seed(0)
        return frozen(tiny_classifier(tiny_bert))

    first, second = new_classifier(), new_classifier()
    with cached(first, accelerator=accelerator) as splits:
        uninterrupted = train(first, splits["train"], accelerator, tmp_path / "full")
    shutil.copytree(tmp_path / "full", tmp_path / "half")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "half" / f"step-00000{step}")
    checkpoint = find_checkpoint("auto", tmp_path / "half").folder
    assert checkpoint is not None
    with cached(second, accelerator=accelerator) as splits:
        resumed = train(second, splits["train"], accelerator, tmp_path / "half", checkpoint)
    assert largest_difference(uninterrupted, resumed) == 0.0
    assert load_file(checkpoint / "weights.safetensors").keys() == uninterrupted.keys()


def test_a_trained_parameter_in_the_lower_part_is_named(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    freeze(classifier.base, Freezing(embeddings=False, layers=1))
    with (
        pytest.raises(ModelError, match=r"bert\.embeddings\.word_embeddings\.weight, .* is trained"),
        cached(classifier),
    ):
        pass


def test_padding_that_shifts_positions_is_rejected(tiny_bert: Path) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, padding_side="left")
    with pytest.raises(ModelError, match="its logits differ by"), cached(replace(classifier, tokenizer=tokenizer)):
        pass
