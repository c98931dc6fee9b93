"""Experiment trackers (TensorBoard, wandb and others): the name of the project, and the recipe as its config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from finetune.pipeline.context import RunContext
from finetune.recipe.schema import Recipe

_MAX_PROJECT_NAME = 128  # characters that wandb accepts


def start_trackers(context: RunContext) -> None:
    """Start the recipe's tracker, if any, with the run folder's name as the project and the recipe as its config."""
    # mlflow puts the name between quotation marks, and wandb rejects slashes and some other characters.
    name = re.sub(r"[^\w.-]+", "-", context.folder.path.absolute().name).strip("-.")[:_MAX_PROJECT_NAME]
    context.accelerator.init_trackers(name or "finetune", config=hyperparameters(context.recipe))


def hyperparameters(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """Return the recipe without its rows as one flat table, from `section.key` to a value that every tracker accepts.

    None, lists, and mappings with arbitrary keys become JSON text, as TensorBoard does not accept None.
    """
    content = recipe.model_dump(mode="json")
    content["data"] = {key: value for key, value in content["data"].items() if not key.endswith("_rows")}
    return dict(_flatten(content))


def _flatten(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and not prefix:  # a section
            yield from _flatten(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)
