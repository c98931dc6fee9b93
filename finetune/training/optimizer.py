"""The optimizer and gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from finetune.recipe.training_section import TrainingSection

# Device types on which fused AdamW divides the gradients by `grad_scale`, which saves a pass over them. On MPS it
# ignores `grad_scale`.
_FUSED_CLIPPING = ("cpu", "cuda")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    training: TrainingSection,
    loraplus_lr_ratio: float | None = None,
    depths: Mapping[str, int] | None = None,
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) without weight decay for vectors, that is biases and norms.

    With `weight_decay: 0` this is Adam (Kingma and Ba 2015).

    Args:
        parameters: the parameters to train, by their names in the model.
        loraplus_lr_ratio: multiplies the learning rate of LoRA's B matrices (LoRA+, Hayou et al. 2024).
        depths: depth of each parameter from the top of the model, 0 to layers + 1. With `layerwise_lr_decay` d, the
            learning rate at depth k is multiplied by d^k (Howard and Ruder 2018, section 3.2, where d = 1 / 2.6; Clark
            et al. 2020). None: one rate for all.
    """
    rate, decay = training.learning_rate, training.layerwise_lr_decay or 1.0
    assert isinstance(rate, float), "auto_settings.fill_in sets a learning rate that is left to auto"
    groups: dict[tuple[int, int], dict[str, Any]] = {}  # (depth, kind): the first has the recipe's learning rate
    for name, parameter in parameters.items():
        is_lora_b = bool(loraplus_lr_ratio) and "lora_B" in name
        depth = depths[name] if depths else 0
        factor = (loraplus_lr_ratio or 1.0) if is_lora_b else 1.0
        empty = {
            "params": [],
            "weight_decay": 0.0 if parameter.dim() <= 1 else training.weight_decay,
            "lr": rate * factor * decay**depth,
        }
        kind = 2 if is_lora_b else int(parameter.dim() <= 1)
        groups.setdefault((depth, kind), empty)["params"].append(parameter)
    return torch.optim.AdamW(
        [groups[key] for key in sorted(groups)],
        lr=rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def clip_gradients(
    optimizer: torch.optim.AdamW, parameters: Sequence[nn.Parameter], norm: Tensor, max_norm: float
) -> None:
    """Scale the gradients, whose norm is `norm`, down to `max_norm` in the optimizer's next step."""
    if norm.device.type in _FUSED_CLIPPING:
        optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]
    else:
        clip_grads_with_norm_(parameters, max_norm, norm)
