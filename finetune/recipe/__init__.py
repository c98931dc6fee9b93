"""The recipe: its schema, how it is loaded, and how its mistakes are reported. Imports no torch."""

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
