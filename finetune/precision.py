"""Mixed precision without casting the same weights again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import peft
import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import nn

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
