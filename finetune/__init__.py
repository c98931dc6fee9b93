"""Fine-tune BERT-family classifiers from one recipe, and measure which attention heads they need.

    from finetune import load_recipe, train, evaluate, analyze_heads, prune, load_classifier

Each name is imported when it is first used, so `import finetune` is fast and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING

from finetune.imports import collector_paused
from finetune.version import __version__ as __version__

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier
    from finetune.models.outputs import Prediction
    from finetune.pipeline.analyze_heads import analyze_heads
    from finetune.pipeline.compare import compare
    from finetune.pipeline.evaluate import evaluate
    from finetune.pipeline.load_classifier import load_classifier
    from finetune.pipeline.prune import prune
    from finetune.pipeline.series import train_series
    from finetune.pipeline.sweep import sweep
    from finetune.pipeline.train import train
    from finetune.recipe.loader import load_recipe
    from finetune.recipe.schema import Recipe
    from finetune.recipe.sweep_loader import load_sweep


__all__ = [
    "Classifier",
    "Prediction",
    "Recipe",
    "analyze_heads",
    "compare",
    "evaluate",
    "load_classifier",
    "load_recipe",
    "load_sweep",
    "prune",
    "sweep",
    "train",
    "train_series",
]

_LOCK = RLock()
_MODULES = {
    "Classifier": "models.classifier",
    "Prediction": "models.outputs",
    "Recipe": "recipe.schema",
    "analyze_heads": "pipeline.analyze_heads",
    "compare": "pipeline.compare",
    "evaluate": "pipeline.evaluate",
    "load_classifier": "pipeline.load_classifier",
    "load_recipe": "recipe.loader",
    "load_sweep": "recipe.sweep_loader",
    "prune": "pipeline.prune",
    "sweep": "pipeline.sweep",
    "train": "pipeline.train",
    "train_series": "pipeline.series",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'finetune' has no attribute '{name}'")
    with _LOCK, collector_paused():  # two threads must not import transformers together, whose imports are lazy
        value: object = getattr(import_module(f"finetune.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all names, including public ones that were not imported yet."""
    return sorted({*globals(), *__all__})
