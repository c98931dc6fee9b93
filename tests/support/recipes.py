"""Recipes for tests: the smallest valid one, and those of the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.recipe.schema import Recipe
from tests.support import ROOT

WriteRecipe = Callable[[str], Path]

RECIPES = sorted(ROOT.joinpath("recipes").glob("*.yaml"))
ROWS = "[{sentence: a b, label: x}, {sentence: c d, label: y}]"
MINIMAL = f"model: {{model_name_or_path: some/model}}\ndata: {{train_rows: {ROWS}, validation_rows: {ROWS}}}\n"


def minimal_recipe(**sections: dict[str, Any]) -> Recipe:
    """Return a recipe with one training row and these sections."""
    data = {"train_rows": [{"sentence": "a", "label": "x"}]} | sections.pop("data", {})
    return Recipe.model_validate({"output_dir": "x", "model": {"model_name_or_path": "m"}, "data": data, **sections})
