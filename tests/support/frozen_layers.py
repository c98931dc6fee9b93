"""Classifiers with frozen layers and the cache of their output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from finetune.models.activation_cache import CacheSettings, cached_frozen_layers
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing, freeze
from tests.conftest import SENTENCES
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


def write_frozen_recipe(
    folder: Path, checkpoint: Path, head_importance: dict[str, str] | None = None, **training: bool
) -> Path:
    """Write a recipe that trains one epoch on the six sentences with cached frozen layers, and return its path."""
    rows = [{"sentence": text, "label": "yes" if n % 2 else "no"} for n, text in enumerate(SENTENCES)]
    content = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(checkpoint)},
        "data": {"train_rows": rows, "validation_rows": rows, "max_length": 16},
        "training": {
            "freeze_embeddings": True, "freeze_layers": 1, "cache_frozen_layers": True, "use_cpu": True,
            "num_threads": 1, "num_train_epochs": 1, **training,
        },
        "head_importance": head_importance,
    }  # fmt: skip
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(content))
    return recipe
