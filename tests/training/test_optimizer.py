from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from finetune.errors import TrainingError
from finetune.models.classifier import Classifier
from finetune.recipe.training_section import TrainingSection
from finetune.training.optimizer import build_optimizer, class_weights


def test_biases_and_norms_have_no_weight_decay(build: Callable[..., Classifier]) -> None:
    model = build().model
    decayed, not_decayed = build_optimizer(
        dict(model.named_parameters()), TrainingSection(learning_rate=2e-5, weight_decay=0.1)
    ).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.1, 0.0)
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in not_decayed["params"])
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(names)


def test_class_weights() -> None:
    labels, names = torch.tensor([0, 0, 0, 1]), ["no", "yes"]
    assert class_weights(None, labels, names) is None
    balanced = class_weights("balanced", labels, names)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([2 / 3, 2.0])
    named = class_weights({"yes": 3.0}, labels, names)
    assert named is not None
    assert named.tolist() == [1.0, 3.0]
    with pytest.raises(TrainingError, match=r"class_weights: maybe is not a label; the labels are no, yes"):
        class_weights({"maybe": 1.0}, labels, names)
