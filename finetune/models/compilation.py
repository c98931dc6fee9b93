"""Layers compiled by torch.compile: `training.torch_compile`.

Layers are compiled one by one rather than the model as a whole: as they share their code, one compilation serves all,
hooks and inputs of the model itself stay outside, and no weight changes its name. Batches differ in size, so sizes are
dynamic. What was compiled is let go at the end: hooks that head analysis sets would not be seen in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune.errors import TrainingError
from finetune.models.architectures import family_of

BACKEND = "inductor"
# What torch's compiler does itself; nothing a user could change.
_OWN_WARNINGS = ("The .grad attribute of a Tensor that is not a leaf", "`torch.jit.script_method` is deprecated")


@contextmanager
def compiled_layers(model: PreTrainedModel, device: torch.device, *, first: int = 0) -> Iterator[int]:
    """Let the layers from `first` on run compiled; yield how many they are.

    Each kind of pass, training and scoring, is compiled at its first batch.

    Raises:
        TrainingError: there is no compiler on this machine.
    """
    with warnings.catch_warnings():
        for message in _OWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        _try_compiler(device)
        with _compiled(model, first) as layers:
            yield layers


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


def encoder_layers(model: PreTrainedModel, *, first: int = 0) -> list[nn.Module]:
    """Return the encoder's layers from `first` on, fewer where layers share their weights."""
    config, family = model.config, family_of(model.config)
    paths = dict.fromkeys(family.path(config, layer) for layer in range(first, family.num_layers(config)))
    return [model.base_model.get_submodule(path) for path in paths]


def _try_compiler(device: torch.device) -> None:
    """Raise TrainingError if nothing can be compiled: it would be told only at the first batch, and at length."""
    try:
        torch.compile(torch.cos, backend=BACKEND)(torch.zeros(16, device=device))
    except RuntimeError as error:
        needs = "a C++ compiler with Python's headers" if device.type == "cpu" else "triton and a C compiler"
        said = " ".join(str(error).split())
        raise TrainingError(
            f"training.torch_compile needs {needs}, which this machine has not: {said[:200]}; install it, or set "
            "training.torch_compile: false"
        ) from error
