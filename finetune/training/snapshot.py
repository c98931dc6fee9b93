"""The content of a checkpoint in memory.

P processes, N losses not logged yet
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import TrainingError
from finetune.training.state import TrainState, restore_random_state


@dataclass(frozen=True)
class Snapshot:
    """Everything that a training run needs to continue bit for bit.

    Attributes:
        state: counters and the best evaluation.
        weights: the trainable parameters by name. Empty on all processes except the main process, which writes them.
        best: the trainable parameters at the best evaluation; None if there was none, or if it is this step.
        losses: losses of the steps that are not logged yet, (N,).
        objects: `state_dict` of optimizer, scheduler and loss scaler, by name.
        random_states: random state of each process, (P,).
        run_fingerprint: what a resumed run must have in common with this one, as JSON values.
    """

    state: TrainState
    weights: dict[str, Tensor]
    best: dict[str, Tensor] | None
    losses: Tensor
    objects: dict[str, Any]
    random_states: list[dict[str, Any]]
    run_fingerprint: dict[str, Any]

    def mismatch(self, model: nn.Module, objects: Mapping[str, Any]) -> str | None:
        """Return which of `objects` cannot be restored from this snapshot, None if all can.

        Raises:
            TrainingError: the weights are those of another model.
        """
        for weights in (self.weights, self.best):
            if weights is not None:
                _matching_parameters(model, weights)
        missing = sorted(objects.keys() - self.objects.keys())
        if missing:
            return missing[0]
        return _optimizer_mismatch(objects["optimizer"], self.objects["optimizer"]) if "optimizer" in objects else None

    def restore(self, model: nn.Module, objects: Mapping[str, Any], process: int) -> None:
        """Restore the model's trainable parameters, the objects, and the random state of this process.

        The random state is restored last: no random number may be drawn between this call and the next step.
        """
        restore_weights(model, self.weights)
        for name, item in objects.items():
            item.load_state_dict(self.objects[name])
        restore_random_state(self.random_states[process])


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a CPU copy of every trainable parameter, by name."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


def restore_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model's trainable parameters.

    Raises:
        TrainingError: names, shapes or dtypes differ from those of the model, which is not changed.
    """
    parameters = _matching_parameters(model, weights)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _matching_parameters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the model's trainable parameters; raise TrainingError unless `weights` has the same names and shapes."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    different = sorted(parameters.keys() ^ weights.keys()) or [
        name for name, p in parameters.items() if (p.shape, p.dtype) != (weights[name].shape, weights[name].dtype)
    ]
    if different:
        raise TrainingError(
            f"the checkpoint is of another model or LoRA setting: it differs in {', '.join(different[:3])}; restore "
            "the settings of its run, or name another checkpoint"
        )
    return parameters


def _optimizer_mismatch(optimizer: Any, saved: Mapping[str, Any]) -> str | None:
    """Return the first part of a saved state that does not fit an optimizer in number or shape, None if all fits."""
    groups, saved_groups = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        return "the number of the optimizer's parameters"
    for index, parameter in enumerate(p for group in groups for p in group["params"]):
        moments = [value for value in saved["state"].get(index, {}).values() if value.dim()]
        if any(moment.shape != parameter.shape for moment in moments):
            return f"the optimizer's state of parameter {index}"
    return None
