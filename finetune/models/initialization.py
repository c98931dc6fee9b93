"""Initialize modules of a loaded model again at random."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel


def initialize_again(model: PreTrainedModel, modules: Iterable[nn.Module]) -> None:
    """Initialize these modules of the model at random, as its family initializes new ones."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                vars(parameter).pop("_is_hf_initialized", None)  # with this mark `_init_weights` would skip it
            module.apply(model._init_weights)
