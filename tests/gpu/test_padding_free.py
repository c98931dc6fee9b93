"""Training without padding on a CUDA GPU: attention with the flash kernel, alone and with compiled layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.batching import load_batches
from finetune.models.padding_free import ROW_LENGTHS, PaddingFree
from finetune.models.padding_free_trial import try_padding_free
from finetune.models.precision import rounding_tolerance
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from tests.gpu.test_gpu import ON_GPU, check_run
from tests.support.finished_runs import finished, recipe
from tests.support.helpers import encoded, plan, tiny_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU on this machine"),
]
GPU = torch.device("cuda")


def logits_and_gradients(model: Any, inputs: dict[str, Tensor], *contexts: Any) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradients of all parameters in one vector, in float32."""
    model.zero_grad()
    with contexts[0], contexts[1]:
        logits = model(**inputs).logits
    logits.float().square().sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logits.detach().float(), torch.cat(gradients).float()


@pytest.fixture
def on_gpu(tiny_bert: Path) -> tuple[Any, PaddingFree, dict[str, Tensor]]:
    classifier = tiny_classifier(tiny_bert)
    classifier.model.to(GPU).eval()
    packed, reason = try_padding_free(classifier.base, GPU)
    assert packed is not None, reason
    (batch,) = load_batches(encoded(classifier), [np.arange(6)], classifier.tokenizer, device=GPU)
    return classifier.base, packed, batch.inputs


@pytest.mark.parametrize("flash", [False, True])
def test_the_results_of_padded_batches(on_gpu: tuple[Any, PaddingFree, dict[str, Tensor]], flash: bool) -> None:
    model, packed, inputs = on_gpu
    if flash and torch.cuda.get_device_capability() >= (8, 0):
        assert packed.form.flash, "the flash kernel does not run on this GPU, or its results are wrong"
    packed.form = replace(packed.form, flash=flash)
    for dtype in (torch.float32, torch.bfloat16):
        autocast = torch.autocast("cuda", dtype, enabled=dtype != torch.float32)
        exact = torch.autocast("cuda", enabled=False)
        expected, expected_gradients = logits_and_gradients(model, inputs, exact, exact)
        logits, gradients = logits_and_gradients(model, inputs, autocast, packed.in_use())
        with autocast:
            tolerance = rounding_tolerance(model, expected)
        assert float((logits - expected).abs().max()) <= tolerance
        cosine = torch.cosine_similarity(gradients, expected_gradients, dim=0)
        assert float(cosine) > (0.9999 if dtype == torch.float32 else 0.99)


def test_the_gpu_is_never_read(on_gpu: tuple[Any, PaddingFree, dict[str, Tensor]]) -> None:
    model, packed, inputs = on_gpu
    lengths = inputs["attention_mask"].sum(1).cpu()
    model.train()  # with dropout in the flash kernel
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16), packed.in_use(lengths):
            logits = model(**inputs).logits
        logits.float().square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logits.isfinite().all()


def test_row_lengths_come_with_the_batches(tiny_bert: Path) -> None:
    classifier, accelerator = tiny_classifier(tiny_bert), Accelerator(mixed_precision="bf16")
    training = TrainingSection(learning_rate=1e-3, padding_free=True, train_sampling_strategy="random")
    trainer = build_trainer(classifier, encoded(classifier), plan(), Hyperparameters(training, seed=0), accelerator)
    for micro_batches, rows in trainer.epoch_steps():
        assert all(batch.inputs[ROW_LENGTHS].device.type == "cpu" for batch in micro_batches)
        trainer.optimizer_step(micro_batches, rows)
    assert np.isfinite(trainer.log_entry()["loss"])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_learns(bert_without_dropout: Path, tmp_path: Path, compiled: bool) -> None:
    content = recipe(
        {"model_name_or_path": str(bert_without_dropout)},
        training={
            **ON_GPU, "mixed_precision": "bf16", "padding_free": True, "torch_compile": compiled,
            "train_sampling_strategy": "random", "learning_rate": 3e-3, "num_train_epochs": 20,
        },
        logging={"logging_steps": 24},
    )  # fmt: skip
    check_run(finished(tmp_path, content))
