"""Number formats: which precision a device supports, what flash attention needs, and how much rounding is expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError, TrainingError
from finetune.models.architectures import family_of

INT8 = "int8"  # a value of `training.mixed_precision`
_FLASH = "flash_attention_2"
# Limits for differences by rounding, relative to the largest logit. With other batches and another attention kernel,
# logits of the supported model types and MiniLM differed by at most 9e-7 in float32, 4e-3 in float16 and 2.3e-2 in
# bfloat16 (mobilebert, the deepest model: 8e-3 and 0.5 in the last two). The limit is about ten times this value in
# float32 and about twice in the others; logits that are compared here use the same kernels and differ less.
_ROUNDING = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ROUNDING_FLOAT32 = 1e-5


def device_precision(*, use_cpu: bool) -> str:
    """Return "bf16" if the training device has bfloat16 matrix instructions, which are then faster, else "no"."""
    if use_cpu or not torch.accelerator.is_available():
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def multiply_in_int8(accelerator: Accelerator) -> None:
    """Set `accelerator.mixed_precision` to int8, which Accelerate does not know; to Accelerate it is float32.

    Raises:
        TrainingError: the device is not a CPU, or this build of PyTorch has no fast int8 products.
    """
    if accelerator.device.type != "cpu":
        raise TrainingError(
            f"int8 products are for CPUs, and this process uses a device of type '{accelerator.device.type}'; set "
            "training.mixed_precision: auto, or training.use_cpu: true (finetune predict: remove --int8)"
        )
    if not torch.backends.mkldnn.is_available():
        raise TrainingError(
            "int8 products need oneDNN, which this build of PyTorch does not have; set training.mixed_precision: no "
            "(finetune predict: remove --int8)"
        )
    accelerator.state._mixed_precision = INT8


def avoid_cudnn_attention() -> None:
    """Let torch choose its own attention kernels on a GPU, not cuDNN's, in this process.

    cuDNN prepares a plan for each new shape of a batch, and batches of sentences have many shapes. In bf16 on an H100,
    MiniLM with the lengths of SST-2 trained 3 times and scored 6 to 9 times as fast without it.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def bfloat16_warning(mixed_precision: str, dtype: str, device: torch.device) -> str | None:
    """Return a warning if the recipe selects bfloat16 on a device without instructions for it, else None.

    torch then converts or falls back to a plain loop: on processors without AVX-512, bfloat16 matrix products took 44
    to 499 times as long as in float32 (https://github.com/pytorch/pytorch/issues/146508).

    Args:
        mixed_precision: the recipe's `training.mixed_precision`.
        dtype: the recipe's `model.dtype`.
    """
    settings = {
        "training.mixed_precision: bf16": (mixed_precision == "bf16", "training.mixed_precision: auto"),
        "model.dtype: bfloat16": (dtype == "bfloat16", "model.dtype: float32"),
    }
    fixes = {setting: fix for setting, (selected, fix) in settings.items() if selected}
    if not fixes or device.type not in {"cpu", "cuda"} or device_precision(use_cpu=device.type == "cpu") == "bf16":
        return None
    name = "processor" if device.type == "cpu" else "GPU"
    return (
        f"{' and '.join(fixes)} on a {name} without bfloat16 instructions can take many times as long as float32; set "
        f"{' and '.join(fixes.values())}"
    )


def rounding_tolerance(model: nn.Module, logits: Tensor) -> float:
    """Return how much logits of the same weights and rows may differ when sums are computed in another order.

    It is proportional to the largest logit, at least 1, and depends on the lowest precision of the computation: that of
    a weight, or of autocast where it is on.
    """
    dtypes = {p.dtype for p in model.parameters()}
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.add(torch.get_autocast_dtype(logits.device.type))
    return max(_ROUNDING.get(dtype, _ROUNDING_FLOAT32) for dtype in dtypes) * max(1.0, float(logits.abs().max()))


def check_autocast(base: PreTrainedModel, precision: str) -> None:
    """Raise ModelError if the code of the model's family in transformers fails under autocast to bf16 or fp16.

    Args:
        precision: that of the accelerator.
    """
    if precision in ("bf16", "fp16") and not family_of(base.config).autocast:
        raise ModelError(
            f"the precision is {precision}, in which transformers cannot run a '{base.config.model_type}' model; set "
            "training.mixed_precision: no, or leave out --bf16"
        )


def uses_flash_attention(base: PreTrainedModel) -> bool:
    """Return whether the model uses flash attention: float16 or bfloat16 on a GPU only, and masks (B, S)."""
    return str(base.config._attn_implementation) == _FLASH


def check_flash_attention(mixed_precision: str, dtype: str, *, use_cpu: bool) -> None:
    """Raise TrainingError unless flash attention can run: on a GPU, in float16 or bfloat16.

    Args:
        mixed_precision: the recipe's `training.mixed_precision`, with `auto` already replaced.
        dtype: the recipe's `model.dtype`.
    """
    if use_cpu or not torch.cuda.is_available():
        raise TrainingError(
            f"model.attn_implementation: {_FLASH} needs a GPU, and this run uses none; set "
            "model.attn_implementation: sdpa"
        )
    if mixed_precision == "no" and dtype == "float32":
        raise TrainingError(
            f"model.attn_implementation: {_FLASH} needs float16 or bfloat16, and this run uses float32; set "
            "training.mixed_precision: bf16, or model.attn_implementation: sdpa"
        )


@contextmanager
def without_flash_attention(model: nn.Module) -> Iterator[None]:
    """Inside the context a model with flash attention uses eager attention, in any precision and on any device.

    It serves to compare logits in the precision of the weights. Other models are not changed.
    """
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    changed = [config for config in configs if config._attn_implementation == _FLASH]
    try:
        for config in changed:
            config._attn_implementation = "eager"
        yield
    finally:
        for config in changed:
            config._attn_implementation = _FLASH
