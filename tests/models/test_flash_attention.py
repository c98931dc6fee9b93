"""Flash attention supports only float16 and bfloat16, so code that runs without autocast must not use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune.errors import TrainingError
from finetune.heads.ablation import ablation
from finetune.heads.attention_maps import confidence
from finetune.heads.gated_forward import check_all_ones, gate_gradients
from finetune.heads.pruning import measure_speed
from finetune.models.activation_cache import CacheSettings, cached_frozen_layers
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.freezing import Freezing, freeze
from finetune.models.loading import load_classifier
from finetune.models.merging import merge_classifier
from finetune.models.precision import check_flash_attention, uses_flash_attention, without_flash_attention
from finetune.models.pretrained import Source
from finetune.models.saving import save_classifier
from finetune.pipeline.session import with_precision
from finetune.recipe.schema import Recipe
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from tests.support.finished_runs import SCRATCH, recipe
from tests.support.helpers import encoded, plan, sample_of, tiny_classifier

CPU = torch.device("cpu")
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
FLASH = "flash_attention_2"


def fake_flash_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """A fake of flash attention: the same dtypes and masks (B, S), computed by another kernel."""
    dtype = query.dtype
    if dtype == torch.float32:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else next(module.parameters()).dtype
    if dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
    query, key, value = (part.to(dtype) for part in (query, key, value))
    result = F.scaled_dot_product_attention(query, key, value, mask, scale=options.get("scaling"))
    return result.transpose(1, 2), None


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FLASH, fake_flash_attention)
    AcceleratorState._reset_state()
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state()
    Accelerator(cpu=True)


def with_flash_attention(classifier: Classifier) -> Classifier:
    classifier.base.config._attn_implementation = FLASH
    classifier.model.eval()
    return classifier


def test_the_fake_kernel_rejects_float32(tiny_bert: Path, bf16: Accelerator) -> None:
    base = with_flash_attention(tiny_classifier(tiny_bert)).base
    inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        base(**inputs)
    with bf16.autocast():
        logits = base(**inputs).logits
    with without_flash_attention(base):
        eager = base(**inputs).logits
    assert uses_flash_attention(base)
    torch.testing.assert_close(logits.float(), eager, atol=0.05, rtol=0)  # bfloat16 rounding; see precision.py


def test_a_model_is_saved_loaded_and_merged(tiny_bert: Path, bf16: Accelerator, tmp_path: Path) -> None:
    classifier = with_flash_attention(tiny_classifier(tiny_bert))
    save_classifier(classifier, tmp_path / "model")
    reloaded = with_flash_attention(load_classifier(tmp_path / "model"))
    assert check_reload(classifier, reloaded, TEXTS, CPU) <= 1e-6
    assert uses_flash_attention(classifier.base)
    assert uses_flash_attention(reloaded.base)
    first, second = measure_speed(classifier, reloaded, TEXTS, rounds=1)
    assert min(first, second) > 0
    # The merged model is loaded with sdpa, which sums in another order: measured 1.2e-6.
    assert merge_classifier(reloaded, tmp_path / "merged", TEXTS) <= 1e-5


def test_heads_are_measured_without_fast_ablation(tiny_bert: Path, bf16: Accelerator) -> None:
    torch.manual_seed(0)
    sample = sample_of(with_flash_attention(tiny_classifier(tiny_bert)))
    object.__setattr__(sample, "accelerator", bf16)
    check_all_ones(sample)
    result = ablation(sample)
    assert result.savings == frozenset()
    assert np.isfinite(result.loss()).all()
    assert np.isfinite(gate_gradients(sample)).all()
    assert np.isfinite(confidence(sample).values).all()
    assert uses_flash_attention(sample.classifier.base)


@pytest.mark.parametrize("cached", [False, True])
def test_training_works_with_frozen_layers_cached_and_without(
    tiny_bert: Path, bf16: Accelerator, tmp_path: Path, cached: bool
) -> None:
    classifier = with_flash_attention(tiny_classifier(tiny_bert))
    if cached:
        freeze(classifier.base, Freezing(embeddings=True, layers=1))
    split, caches = encoded(classifier), ExitStack()
    with caches:
        if cached:
            cache = cached_frozen_layers(
                classifier, {"train": split}, CacheSettings(1, batch_size=4), accelerator=bf16, notify=lambda text: None
            )
            split = caches.enter_context(cache)["train"]
        trainer = build_trainer(
            classifier, split, plan(), Hyperparameters(TrainingSection(learning_rate=1e-3), seed=0), bf16
        )
        trainer.fit(tmp_path)
    trainer.unwrap_model()
    assert trainer.state.step == 6
    assert logits_of(classifier, TEXTS, CPU).isfinite().all()


@pytest.mark.parametrize(
    ("gpu", "use_cpu", "precision", "dtype", "message"),
    [
        (True, False, "bf16", "float32", None),
        (True, False, "no", "bfloat16", None),
        (True, False, "no", "float32", r"needs float16 or bfloat16, .* training.mixed_precision: bf16"),
        (True, True, "bf16", "float32", r"flash_attention_2 needs a GPU, .* model.attn_implementation: sdpa"),
        (False, False, "bf16", "float32", r"flash_attention_2 needs a GPU, .* model.attn_implementation: sdpa"),
    ],
)
def test_unsupported_settings_are_rejected_before_training(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, use_cpu: bool, precision: str, dtype: str, message: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if message is None:
        check_flash_attention(precision, dtype, use_cpu=use_cpu)
        return
    with pytest.raises(TrainingError, match=message):
        check_flash_attention(precision, dtype, use_cpu=use_cpu)
    model = {"model_name_or_path": "x", "dtype": dtype, "attn_implementation": FLASH}
    content = {**recipe(SCRATCH), "model": model, "training": {"mixed_precision": precision, "use_cpu": use_cpu}}
    with pytest.raises(TrainingError, match=message):
        with_precision(Recipe.model_validate({"output_dir": "x", **content}))


def test_a_machine_without_a_gpu_loads_the_run_with_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("x", attn_implementation=FLASH)
    for gpu, expected in ((True, FLASH), (False, "sdpa")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert source.loading_options()["attn_implementation"] == expected
    assert "attn_implementation" not in Source("x").loading_options()
