"""The recipe: its schema, its reader, and what is said about a wrong one. Imports no torch."""

from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.names import METRICS
from finetune.recipe.schema import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    HeadImportanceSection,
    LoggingSection,
    ModelSection,
    PeftSection,
    Recipe,
    TaskSection,
    TrainingSection,
)

__all__ = [
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
