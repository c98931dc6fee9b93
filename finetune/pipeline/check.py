"""The command `check`: find the mistakes in a recipe without running it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.models.checkpoint_config import check_checkpoint, check_new_model
from finetune.models.pooling import check_pooling
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.ownership import check_output_dir
from finetune.runs.run_folder import RunFolder


def check(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Return the recipe and notes on what was not checked, after checking all that takes about a second.

    These are the recipe, its output directory, the config of the model, and the first rows of the data.

    Raises:
        FinetuneError: `train` would stop with the same message.
    """
    recipe = load_recipe(path, overrides)
    check_output_dir(RunFolder(Path(recipe.output_dir)), recipe)
    model, notes = recipe.model, []
    if model.model_name_or_path is None:
        check_new_model(str(model.model_type), model.config_overrides, recipe.data.max_length)
        check_pooling(model.pooling, str(model.model_type))
    elif note := check_checkpoint(model.model_name_or_path, model.revision, recipe.data.max_length, model.pooling):
        notes.append(note)
    from finetune.data.first_rows import check_first_rows  # importing pyarrow takes a third of a second

    return recipe, notes + check_first_rows(recipe.data, recipe.task.problem_type, recipe.task.label_names)
