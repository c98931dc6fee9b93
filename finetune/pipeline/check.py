"""The command `check`: find the mistakes in a recipe without running it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.models.checkpoint_config import (
    check_checkpoint,
    check_layer_counts,
    check_new_model,
    chosen_pooling,
    hidden_size,
)
from finetune.models.pooling import HEAD, NO_PRETRAINED_ENCODER, NO_STATES, check_pooling, check_probe
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.ownership import check_output_dir, output_folder
from finetune.training.auto_settings import RunSize, describe_choices, fill_in


def check(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Return the recipe and notes, after checking all that takes about a second.

    The notes say what was not checked, and which numbers stand for `auto` if all rows were read.

    These are the recipe, its output directory, the config of the model, and the first rows of the data.

    Raises:
        FinetuneError: `train` would stop with the same message.
    """
    recipe = load_recipe(path, overrides)
    return recipe, check_recipe(recipe)


def check_recipe(recipe: Recipe) -> list[str]:
    """Return the notes of `check` on a recipe that is already loaded.

    Raises:
        FinetuneError: `train` would stop with the same message.
    """
    check_output_dir(output_folder(recipe), recipe)
    model, pooling = recipe.model, None
    notes: list[str] = []
    if model.model_name_or_path is None:
        width = model.config_overrides.get("hidden_size")
        check_new_model(str(model.model_type), model.config_overrides, recipe.data.max_length)
        check_pooling(model.pooling, str(model.model_type))
        check_probe(model.classifier_init, NO_PRETRAINED_ENCODER)
    else:
        note = check_checkpoint(model.model_name_or_path, model.revision, recipe.data.max_length, model.pooling)
        width = hidden_size(model.model_name_or_path, model.revision)
        pooling = chosen_pooling(model.model_name_or_path, model.revision, model.pooling)
        check_probe(model.classifier_init, NO_STATES if pooling == HEAD else "")
        counts = {f"training.{key}": getattr(recipe.training, key) for key in ("freeze_layers", "reinit_layers")}
        check_layer_counts(model.model_name_or_path, model.revision, counts)
        notes += [note] if note else []
    from finetune.data.first_rows import check_first_rows  # importing pyarrow takes a third of a second

    rows = check_first_rows(
        recipe.data_to_read(), recipe.task.problem_type, recipe.task.label_names, recipe.rows_seed()
    )
    notes += rows.notes
    if rows.train is not None:
        width = width if isinstance(width, int) and width > 0 else None
        probe = pooling not in (None, HEAD) and model.classifier_init != "random"
        size = RunSize(
            rows.train,
            rows.labels,
            width,
            rows.has_validation,
            held_out=rows.held_out,
            validation_rows=rows.validation,
            starts_from_probe=probe,
        )
        notes += describe_choices(fill_in(recipe, size)[1])
    return notes
