"""The exponential moving average of the trained weights (recipe key `training.ema_decay`).

Averaged weights are often better than the last ones (Polyak and Juditsky 1992; Izmailov et al. 2018). The model is
evaluated and saved with the average; training continues from the current weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetune.training.fsdp import full_tensor, shard_like


class WeightAverage:
    """The moving average of parameters.

    After step t, the average a of a weight w becomes d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)): small in
    the first steps, so that the initial weights are soon forgotten. Under FSDP each process averages its own shards.

    Attributes:
        weight_decay_factor: the average of `TrainState.weight_decay_factor`, for the embeddings that are not trained.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start from the current weights; `decay`: 0 to 1."""
        self._parameters, self._decay, self._steps = list(parameters), decay, 0
        self._average = [parameter.detach().clone() for parameter in parameters]
        self.weight_decay_factor = 1.0

    @torch.no_grad()
    def update(self, weight_decay_factor: float) -> None:
        """Add the weights, and the weight decay factor, after an optimizer step."""
        self._steps += 1
        weight = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(_local(self._average), _local(self._parameters), weight)
        self.weight_decay_factor += weight * (weight_decay_factor - self.weight_decay_factor)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the context the parameters have the averaged values."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the values of the parameters and of the average."""
        parameters, average = _local(self._parameters), _local(self._average)
        values = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, average)
        torch._foreach_copy_(average, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the state with full tensors on the CPU; all processes must call this together."""
        average = [full_tensor(tensor).cpu() for tensor in self._average]
        return {"steps": self._steps, "weight_decay_factor": self.weight_decay_factor, "average": average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self._steps, self.weight_decay_factor = state["steps"], state["weight_decay_factor"]
        for tensor, value in zip(self._average, state["average"], strict=True):
            tensor.copy_(shard_like(value, tensor))


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the part of each tensor that this process has."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors]
