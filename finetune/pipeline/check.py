"""The command `check`: find the mistakes in a recipe without running it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.recipe import Recipe, load_recipe
from finetune.runs.ownership import check_output_dir
from finetune.runs.run_folder import RunFolder


def check(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe, after checking it and its output directory.

    Raises:
        FinetuneError: the recipe or an override is wrong, or `train` would refuse the output directory.
    """
    recipe = load_recipe(path, overrides)
    check_output_dir(RunFolder(Path(recipe.output_dir)), recipe)
    return recipe
