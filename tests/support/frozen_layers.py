"""Classifiers with frozen layers and the cache of their output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from finetune.models.activation_cache import CacheSettings, cached_frozen_layers
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing, freeze
from tests.support.helpers import encoded


def frozen(classifier: Classifier, layers: int = 1) -> Classifier:
    """Freeze the embeddings and the lowest layers; return the classifier."""
    freeze(classifier.base, Freezing(embeddings=True, layers=layers))
    return classifier


def cached(
    classifier: Classifier,
    layers: int = 1,
    accelerator: Accelerator | None = None,
    notify: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Any:
    """Cache the six sentences as two splits."""
    splits = {"train": encoded(classifier), "validation": encoded(classifier)}
    settings = CacheSettings(**{"layers": layers, "batch_size": 4} | options)
    accelerator = accelerator or Accelerator(cpu=True)
    return cached_frozen_layers(classifier, splits, settings, accelerator=accelerator, notify=notify)


def assert_restored(classifier: Classifier) -> None:
    """Assert that no module has hooks or another forward method."""
    modules = list(classifier.model.modules())
    assert len(modules) > 10
    assert not [m for m in modules if "forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks]
