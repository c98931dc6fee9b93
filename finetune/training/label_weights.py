"""The weights of the labels in the loss of training, as the recipe sets them.

N rows, C labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finetune.errors import TrainingError
from finetune.models.losses import LossOptions, balanced_class_weights, balanced_pos_weight
from finetune.recipe.training_section import TrainingSection

Setting = str | Mapping[str, float] | None  # "balanced", weights by label name, or none


def loss_options(
    training: TrainingSection, labels: Tensor, label_names: Sequence[str], device: torch.device
) -> LossOptions:
    """Return the options of the loss that the recipe sets.

    Args:
        labels: class ids (N,), 0/1 label sets (N, C) or values (N,) of the training rows.

    Raises:
        TrainingError: a weight is for a name that is not a label.
    """
    weights = class_weights(training.class_weights, labels, label_names)
    positive = pos_weight(training.pos_weight, labels, label_names)
    return LossOptions(
        None if weights is None else weights.to(device),
        None if positive is None else positive.to(device),
        training.label_smoothing_factor,
        training.focal_gamma,
    )


def class_weights(setting: Setting, labels: Tensor, label_names: Sequence[str]) -> Tensor | None:
    """Return one weight per class, (C,), as the recipe's `training.class_weights` sets them; None if it is not set.

    `balanced` weights each class by the inverse of its number of rows.

    Args:
        labels: the class of each training row, (N,).

    Raises:
        TrainingError: the setting has a name that is not a label.
    """
    if setting == "balanced":
        return balanced_class_weights(torch.bincount(labels, minlength=len(label_names)))
    return _named_weights("class_weights", setting, label_names)


def pos_weight(setting: Setting, labels: Tensor, label_names: Sequence[str]) -> Tensor | None:
    """Return the weight of the rows that have a label, (C,), as `training.pos_weight` sets it; None if it is not set.

    `balanced` is the number of rows without the label divided by that with it, as in the documentation of torch's
    `BCEWithLogitsLoss`.

    Args:
        labels: the label sets of the training rows as 0 and 1, (N, C).

    Raises:
        TrainingError: the setting has a name that is not a label.
    """
    if setting == "balanced":
        return balanced_pos_weight(labels.sum(0), len(labels))
    return _named_weights("pos_weight", setting, label_names)


def _named_weights(key: str, setting: Setting, label_names: Sequence[str]) -> Tensor | None:
    """Return one weight per label, 1 where the setting has none, (C,); None if nothing is set."""
    if setting is None:
        return None
    assert not isinstance(setting, str)
    unknown = sorted(setting.keys() - set(label_names))
    if unknown:
        raise TrainingError(
            f"training.{key}: {', '.join(unknown)} is not a label; the labels are {', '.join(label_names)}"
        )
    return torch.tensor([setting.get(name, 1.0) for name in label_names])
