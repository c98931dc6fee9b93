"""The recipe: its schema, how it is loaded, and how its mistakes are reported. Imports no torch.

Each name is imported when it is first used: a name from `names.py` needs no pydantic, which an installation that only
serves exported models does not have.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.recipe.data_section import DataSection
    from finetune.recipe.evaluation_section import EvaluationSection, HeadImportanceSection
    from finetune.recipe.loader import dump_recipe, load_recipe
    from finetune.recipe.names import LOWER_IS_BETTER, METRICS
    from finetune.recipe.schema import ModelSection, PeftSection, Recipe, TaskSection
    from finetune.recipe.training_section import CheckpointSection, LoggingSection, TrainingSection

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "CheckpointSection",
    "DataSection",
    "EvaluationSection",
    "HeadImportanceSection",
    "LoggingSection",
    "ModelSection",
    "PeftSection",
    "Recipe",
    "TaskSection",
    "TrainingSection",
    "dump_recipe",
    "load_recipe",
]

_MODULES = {
    "LOWER_IS_BETTER": "names",
    "METRICS": "names",
    "CheckpointSection": "training_section",
    "DataSection": "data_section",
    "EvaluationSection": "evaluation_section",
    "HeadImportanceSection": "evaluation_section",
    "LoggingSection": "training_section",
    "ModelSection": "schema",
    "PeftSection": "schema",
    "Recipe": "schema",
    "TaskSection": "schema",
    "TrainingSection": "training_section",
    "dump_recipe": "loader",
    "load_recipe": "loader",
}


def __getattr__(name: str) -> object:
    """Import a name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'finetune.recipe' has no attribute '{name}'")
    value: object = getattr(import_module(f"finetune.recipe.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
