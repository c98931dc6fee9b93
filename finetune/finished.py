"""A finished run, read back from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from finetune.checking import refuse_too_long
from finetune.data.prepare import encode_splits, read_labelled, summarise
from finetune.errors import DataError
from finetune.modeling import Classifier
from finetune.preparation import Material, check_splits
from finetune.recipe import ModelSection, Recipe, load_recipe
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
    recipe = received_recipe(folder, changes)
    accelerator, console = start(recipe, trackers=False)
    classifier = load_received(folder, recipe, changes)
    refuse_too_long(classifier.base.config, classifier.tokenizer, recipe.data.max_length, str(path))
    with accelerator.local_main_process_first():  # a machine's caches are written once
        splits = read_labelled(recipe.data, classifier.problem_type, classifier.label_names, recipe.seed)
        check_splits(recipe, splits.raw)
        encoded = encode_splits(splits, classifier.tokenizer, recipe.data)
    material = Material(classifier, encoded, summarise(splits, encoded, recipe.data))
    return FinishedRun(folder, recipe, material, accelerator, console)


def received_recipe(folder: RunFolder, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run folder with the user's changes.

    The folder may be somebody else's, so what its recipe says of trust does not count: `model.trust_remote_code` and
    `model.use_safetensors` have their defaults unless a change gives them.

    Raises:
        RecipeError: as `load_recipe`.
    """
    recipe, given = load_recipe(folder.recipe, changes), _keys(changes)
    trust = {
        key: ModelSection.model_fields[key].default
        for key in ("trust_remote_code", "use_safetensors")
        if not given & {"model", f"model.{key}"}
    }
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=trust)})


def load_received(folder: RunFolder, recipe: Recipe, changes: Sequence[str] = ()) -> Classifier:
    """Return the classifier of a run folder, by the recipe that `received_recipe` gave.

    Raises:
        ModelError: see `load_classifier`.
    """
    moved = _keys(changes) & {"model", "model.model_name_or_path"}
    return load_classifier(
        folder.model,
        trust_remote_code=recipe.model.trust_remote_code,
        use_safetensors=recipe.model.use_safetensors,
        base=recipe.model.model_name_or_path if moved else None,
    )


def _keys(changes: Sequence[str]) -> set[str]:
    return {change.partition("=")[0].strip() for change in changes}
