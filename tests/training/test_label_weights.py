"""The weights of the labels in the loss: finetune/training/label_weights.py."""

from __future__ import annotations

import pytest
import torch

from finetune.errors import TrainingError
from finetune.recipe.training_section import TrainingSection
from finetune.training.label_weights import class_weights, loss_options, pos_weight

NAMES = ["no", "yes"]


def test_class_weights() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert class_weights(None, labels, NAMES) is None
    balanced = class_weights("balanced", labels, NAMES)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([2 / 3, 2.0])
    named = class_weights({"yes": 3.0}, labels, NAMES)
    assert named is not None
    assert named.tolist() == [1.0, 3.0]
    with pytest.raises(TrainingError, match=r"class_weights: maybe is not a label; the labels are no, yes"):
        class_weights({"maybe": 1.0}, labels, NAMES)


def test_pos_weight() -> None:
    labels, names = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]), ["rare", "always", "never"]
    assert pos_weight(None, labels, names) is None
    balanced = pos_weight("balanced", labels, names)
    assert balanced is not None
    assert balanced.tolist() == [3.0, 0.25, 1.0]
    named = pos_weight({"never": 2.0}, labels, names)
    assert named is not None
    assert named.tolist() == [1.0, 1.0, 2.0]
    with pytest.raises(TrainingError, match=r"pos_weight: x is not a label; the labels are rare, always, never"):
        pos_weight({"x": 1.0}, labels, names)


def test_the_recipe_sets_all_options_of_the_loss() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    options = loss_options(
        TrainingSection(class_weights={"yes": 2.0}, focal_gamma=1.5), labels, NAMES, torch.device("cpu")
    )
    assert options.class_weights is not None
    assert options.class_weights.tolist() == [1.0, 2.0]
    assert (options.pos_weight, options.label_smoothing, options.focal_gamma) == (None, 0.0, 1.5)
    smoothed = loss_options(TrainingSection(label_smoothing_factor=0.1), labels, NAMES, torch.device("cpu"))
    assert (smoothed.class_weights, smoothed.label_smoothing, smoothed.focal_gamma) == (None, 0.1, 0.0)
