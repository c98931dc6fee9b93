"""Encoder layers compiled with torch.compile (recipe key `training.torch_compile`).

Layers are compiled one by one instead of the model as a whole: they share their code, so one compilation serves all,
hooks and inputs of the model stay outside, and weights keep their names. Batches vary in size, so shapes are dynamic.
At the end the compiled code is removed, because it would ignore the hooks that head analysis adds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from finetune.errors import TrainingError
from finetune.models.architectures import encoder_layers
from finetune.progress import stage

BACKEND = "inductor"
# Warnings that the compiler causes itself; users cannot act on them.
_COMPILER_WARNINGS = ("The .grad attribute of a Tensor that is not a leaf", "`torch.jit.script_method` is deprecated")


@contextmanager
def compiled_layers(model: PreTrainedModel, device: torch.device, *, first: int = 0) -> Iterator[int]:
    """Inside the context the layers from number `first` on are compiled; yield how many they are.

    Training and scoring are each compiled at their first batch.

    Raises:
        TrainingError: this machine has no compiler.
    """
    with warnings.catch_warnings():
        for message in _COMPILER_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        with stage("testing the compiler"):
            _check_compiler(device)
        with _compiled(model, first) as num_layers:
            yield num_layers


@contextmanager
def _compiled(model: PreTrainedModel, first: int) -> Iterator[int]:
    layers = encoder_layers(model, first=first)
    try:
        for layer in layers:
            layer.compile(dynamic=True, backend=BACKEND)
        yield len(layers)
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.reset()


def _check_compiler(device: torch.device) -> None:
    """Raise TrainingError if nothing can be compiled; otherwise the first batch would fail with a long message."""
    try:
        torch.compile(torch.cos, backend=BACKEND)(torch.zeros(16, device=device))
    except RuntimeError as error:
        needs = "a C++ compiler with Python's headers" if device.type == "cpu" else "triton and a C compiler"
        message = " ".join(str(error).split())
        raise TrainingError(
            f"training.torch_compile needs {needs}, which this machine does not have: {message[:200]}; install it, or "
            "set training.torch_compile: false"
        ) from error
