"""A projection with its adapters as one linear map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Linear:
    """A projection with its adapters as one linear map: x @ weight + bias."""

    weight: Tensor  # (in, out)
    bias: Tensor  # (out,)


def linear_map(module: Any) -> Linear:
    """Return a projection as one linear map, adapters included, from its outputs for zeros and for each unit vector."""
    if isinstance(module, nn.Linear):
        bias = module.weight.new_zeros(module.out_features) if module.bias is None else module.bias
        return Linear(module.weight.t().detach(), bias.detach())
    width, like = int(module.in_features), next(module.parameters())
    with torch.autocast(like.device.type, enabled=False):
        bias = module(like.new_zeros(1, width))
        return Linear(module(torch.eye(width, dtype=like.dtype, device=like.device)) - bias, bias[0])
