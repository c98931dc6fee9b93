"""A finished run, read back from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from finetune.data.prepare import encode_splits, read_labelled, summarise
from finetune.errors import DataError
from finetune.preparation import Material, check_splits
from finetune.recipe import Recipe, load_recipe
from finetune.results import RunFolder
from finetune.saving import load_classifier
from finetune.session import start


@dataclass(frozen=True)
class FinishedRun:
    """What is needed to go on with a run: its folder, recipe, classifier and rows, and this process's devices."""

    folder: RunFolder
    recipe: Recipe
    material: Material
    accelerator: Accelerator
    console: Console


def open_run(path: Path, changes: Sequence[str] = ()) -> FinishedRun:
    """Return the finished run in a folder, with its classifier, and its rows read anew by the recipe.

    Args:
        changes: to the recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, or its data can no longer be read.
    """
    folder = RunFolder(path.absolute())
    wanted = (folder.recipe, folder.environment, folder.data, folder.training, folder.model)
    missing = [file.name for file in wanted if not file.exists()]
    if missing:
        raise DataError(f"{path} holds no finished run (no {', '.join(missing)}); name the folder that `train` wrote")
    recipe = load_recipe(folder.recipe, changes)
    accelerator, console = start(recipe, trackers=False)
    classifier = load_classifier(folder.model)
    with accelerator.local_main_process_first():  # a machine's caches are written once
        splits = read_labelled(recipe.data, classifier.problem_type, classifier.label_names, recipe.seed)
        check_splits(recipe, splits.raw)
        encoded = encode_splits(splits, classifier.tokenizer, recipe.data)
    material = Material(classifier, encoded, summarise(splits, encoded, recipe.data))
    return FinishedRun(folder, recipe, material, accelerator, console)
