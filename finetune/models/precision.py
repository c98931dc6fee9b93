"""Mixed precision without casting the same weights again and again, and what a precision leaves of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import peft
import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import TrainingError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FLASH = "flash_attention_2"
# Of the largest logit: ten times what other batches and another attention kernel changed over the model types of
# `families` and MiniLM, 9e-7, in float32; twice as much, 4e-3 and 2.3e-2, in float16 and bfloat16 (mobilebert, the
# deepest, aside: 8e-3 and 0.5). What is compared here goes through the same kernels, and differs by less.
_ROUNDING = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ROUNDING_FLOAT32 = 1e-5


def device_precision(*, use_cpu: bool) -> str:
    """Return "bf16" if the device that will be trained on multiplies in bfloat16, which then is faster, else "no"."""
    if use_cpu or not torch.accelerator.is_available():
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def bfloat16_warning(mixed_precision: str, dtype: str, device: torch.device) -> str | None:
    """Return a warning if the recipe asks for bfloat16 on a device without instructions for it, else None.

    torch then converts or falls back to a plain loop: on processors without AVX-512, bfloat16 matrix products took 44
    to 499 times as long as in float32 (https://github.com/pytorch/pytorch/issues/146508).

    Args:
        mixed_precision: the recipe's `training.mixed_precision`.
        dtype: the recipe's `model.dtype`.
    """
    asked = {
        "training.mixed_precision: bf16": (mixed_precision == "bf16", "training.mixed_precision: auto"),
        "model.dtype: bfloat16": (dtype == "bfloat16", "model.dtype: float32"),
    }
    found = {key: repair for key, (given, repair) in asked.items() if given}
    if not found or device.type not in {"cpu", "cuda"} or device_precision(use_cpu=device.type == "cpu") == "bf16":
        return None
    name = "processor" if device.type == "cpu" else "GPU"
    return (
        f"{' and '.join(found)} on a {name} without bfloat16 instructions can take many times as long as float32; set "
        f"{' and '.join(found.values())}"
    )


def rounding_tolerance(model: nn.Module, logits: Tensor) -> float:
    """Return how far logits of the same weights and rows may be from these, when sums are added in another order.

    It goes by the largest logit, at least 1, and by the lowest precision that is computed in: that of a weight, or that
    of autocast where it is on.
    """
    dtypes = {p.dtype for p in model.parameters()}
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.add(torch.get_autocast_dtype(logits.device.type))
    return max(_ROUNDING.get(dtype, _ROUNDING_FLOAT32) for dtype in dtypes) * max(1.0, float(logits.abs().max()))


def uses_flash_attention(base: PreTrainedModel) -> bool:
    """Return whether the model's attention takes only float16 and bfloat16 on a GPU, and masks (B, S)."""
    return str(base.config._attn_implementation) == _FLASH


def refuse_flash_attention(mixed_precision: str, dtype: str, *, use_cpu: bool) -> None:
    """Raise TrainingError unless flash attention can be computed: on a GPU, in float16 or bfloat16.

    Args:
        mixed_precision: the recipe's `training.mixed_precision`, not `auto`.
        dtype: the recipe's `model.dtype`.
    """
    if use_cpu or not torch.cuda.is_available():
        raise TrainingError(
            f"model.attn_implementation: {_FLASH} needs a GPU, and this run uses none; set "
            "model.attn_implementation: sdpa"
        )
    if mixed_precision == "no" and dtype == "float32":
        raise TrainingError(
            f"model.attn_implementation: {_FLASH} computes in float16 or bfloat16, and this run in float32; set "
            "training.mixed_precision: bf16, or model.attn_implementation: sdpa"
        )


@contextmanager
def attention_in_any_precision(model: nn.Module) -> Iterator[None]:
    """Within, a model with flash attention computes attention openly, in any precision and on any device.

    For comparing logits in the precision of the weights. All other models are left as they are.
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


@contextmanager
def frozen_weights_cast(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Within, frozen weights of linear maps have the dtype that autocast would cast them to in every forward pass.

    Autocast keeps a cast weight for the rest of a pass only if it is trained, so the base under adapters was cast
    anew each time. Results are the same to the bit. The weights come back as they were. Adapters take their input as
    it is, too: peft would cast it to float32, for autocast to cast it back.

    Under DoRA, which computes with the weights itself, nothing is changed.
    """
    dtype = _DTYPES.get(accelerator.mixed_precision)
    names = [name for name, _ in model.named_parameters()]
    if dtype is None or any("lora_magnitude_vector" in name for name in names):
        yield
        return
    elsewhere = {id(p) for m in model.modules() if not isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    frozen = {
        id(p): p for m in linear for p in m.parameters(recurse=False) if not p.requires_grad and id(p) not in elsewhere
    }
    before = [(p, p.data) for p in frozen.values() if p.dtype == torch.float32]
    adapted = isinstance(model, peft.PeftModel)
    try:
        for parameter, weight in before:
            parameter.data = weight.to(dtype)
        with disable_input_dtype_casting(model) if adapted else nullcontext():
            yield
    finally:
        for parameter, weight in before:
            parameter.data = weight
