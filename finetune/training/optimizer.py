"""The optimizer and the weights of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from finetune.errors import TrainingError
from finetune.models.losses import balanced_weights
from finetune.recipe import TrainingSection

# Where fused AdamW divides gradients itself, which saves a pass over them; on mps it takes the divisor and forgets it.
_DIVIDE = ("cpu", "cuda")


def build_optimizer(
    trained: Mapping[str, nn.Parameter], training: TrainingSection, loraplus_lr_ratio: float | None = None
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019); biases and norms, all vectors, are not decayed.

    With `weight_decay: 0` this is Adam (Kingma and Ba 2015). `loraplus_lr_ratio` multiplies the learning rate of
    LoRA's B matrices (LoRA+, Hayou et al. 2024).

    Args:
        trained: the parameters, by their names in the model.
    """
    rate = training.learning_rate
    assert rate is not None, "plan.fill_in chooses the learning rate that a recipe leaves open"
    faster = [p for name, p in trained.items() if loraplus_lr_ratio and "lora_B" in name]
    others = [p for name, p in trained.items() if not (loraplus_lr_ratio and "lora_B" in name)]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
        {
            "params": faster,
            "weight_decay": training.weight_decay,
            "lr": rate * (loraplus_lr_ratio or 1.0),
        },
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def clip(optimizer: torch.optim.AdamW, parameters: Sequence[nn.Parameter], norm: Tensor, most: float) -> None:
    """Let the optimiser's next step see gradients shrunk to a norm of `most`, where theirs, `norm`, is larger."""
    if norm.device.type in _DIVIDE:
        optimizer.grad_scale = ((norm + 1e-6) / most).clamp(min=1.0)  # type: ignore[attr-defined]
    else:
        clip_grads_with_norm_(parameters, most, norm)


def class_weights(asked: str | Mapping[str, float] | None, labels: Tensor, names: list[str]) -> Tensor | None:
    """Return a weight a class, (C,), or None; `balanced` weighs each class by the inverse of its rows.

    Raises:
        TrainingError: a name is no label.
    """
    if asked is None:
        return None
    if isinstance(asked, str):
        return balanced_weights(torch.bincount(labels, minlength=len(names)))
    unknown = sorted(asked.keys() - set(names))
    if unknown:
        raise TrainingError(f"training.class_weights: {', '.join(unknown)} is no label; labels are {', '.join(names)}")
    return torch.tensor([asked.get(name, 1.0) for name in names])
