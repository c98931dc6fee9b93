"""A finished run, read back from its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from finetune.data.splits import load_splits
from finetune.distributed import local_main_process_first
from finetune.errors import DataError, RecipeError
from finetune.models.checkpoint_checks import check_max_length, check_token_ids
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.pipeline.prepare import Material, required_splits
from finetune.pipeline.session import finish, run_locked, start, with_precision
from finetune.recipe import ModelSection, Recipe
from finetune.report.terminal import print_line
from finetune.runs.run_files import existing_run, read_recipe, read_summary
from finetune.runs.run_folder import RunFolder

# What was settled when the run was trained; of `model`, only where the base lies and how files may be read can change.
_SETTLED = ("seed", "task", "peft")
_TRUST = ("use_safetensors", "trust_remote_code")


@dataclass(frozen=True)
class FinishedRun:
    """What is needed to work on with a run: its folder, recipe, classifier and rows, and this process's devices."""

    folder: RunFolder
    recipe: Recipe
    material: Material
    accelerator: Accelerator
    console: Console


def finished_folder(path: Path) -> RunFolder:
    """Return the folder of a finished run, at a path that a user gave.

    Raises:
        DataError: there is no folder, or the run in it never got as far as a model.
    """
    folder = existing_run(path)
    wanted = (folder.recipe, folder.environment, folder.data, folder.training, folder.model)
    missing = [file.name for file in wanted if not file.exists()]
    if missing:
        raise DataError(f"{path} holds no finished run (no {', '.join(missing)}); name the folder that `train` wrote")
    return folder


def finished_recipe(folder: RunFolder, overrides: Sequence[str] = (), *, read_data: bool = True) -> Recipe:
    """Return a finished run's recipe with `section.key=value` overrides.

    Args:
        read_data: whether the data files must be there, as they are read again.

    The folder may be somebody else's, so what its recipe says of trust does not count: `model.trust_remote_code` and
    `model.use_safetensors` have their defaults unless an override gives them.

    Raises:
        RecipeError: the recipe or an override is wrong, or an override would change what the run was trained with.
    """
    recipe = read_recipe(folder, overrides, read_data=read_data)
    trained = read_recipe(folder, read_data=False)
    changed = [name for name in _SETTLED if getattr(recipe, name) != getattr(trained, name)]
    changed += [
        f"model.{name}"
        for name, value in recipe.model
        if name not in (*_TRUST, "model_name_or_path") and value != getattr(trained.model, name)
    ]
    if changed:
        raise RecipeError(
            f"{changed[0]} cannot be changed: the run in {folder.path} was trained with it; train another run for that"
        )
    given = _keys(overrides)
    trust = {key: ModelSection.model_fields[key].default for key in _TRUST if not given & {"model", f"model.{key}"}}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=trust)})
    return with_precision(recipe)


def load_received(folder: RunFolder, recipe: Recipe, changes: Sequence[str] = ()) -> Classifier:
    """Return the classifier of a run folder, by the recipe that `finished_recipe` gave.

    Raises:
        ModelError: see `load_classifier`; or the tokenizer has ids for which the model has no embedding.
    """
    moved = _keys(changes) & {"model", "model.model_name_or_path"}
    classifier = load_classifier(
        folder.model,
        trust_remote_code=recipe.model.trust_remote_code,
        use_safetensors=recipe.model.use_safetensors,
        base=recipe.model.model_name_or_path if moved else None,
    )
    check_token_ids(classifier.base, classifier.tokenizer, str(folder.model))
    return classifier


def _keys(changes: Sequence[str]) -> set[str]:
    return {change.partition("=")[0].strip() for change in changes}


@contextmanager
def open_run(path: Path, overrides: Sequence[str] = (), *, read_only_ok: bool = False) -> Iterator[FinishedRun]:
    """Yield the finished run in a folder, with its classifier, and its rows read again by the recipe.

    No other process writes in the folder meanwhile.

    Args:
        overrides: to the recipe, as `section.key=value`.
        read_only_ok: the folder may be one that cannot be written.

    Raises:
        FinetuneError: the folder holds no finished run, one of its files is damaged, its data can no longer be read,
            or another process writes there.
    """
    folder = finished_folder(path)
    recipe = finished_recipe(folder, overrides)
    before = read_summary(folder)
    accelerator, console = start(recipe, trackers=False)
    with run_locked(folder, accelerator, read_only_ok=read_only_ok):
        material = local_main_process_first(accelerator, partial(_material, folder, recipe, overrides))
        if material.summary != before:
            splits = [name for name, facts in material.summary.items() if facts != before.get(name)]
            print_line(console, f"[yellow]Other rows than when the run was trained: {', '.join(splits)}.[/]")
        yield FinishedRun(folder, recipe, material, accelerator, console)
        finish(accelerator)


def _material(folder: RunFolder, recipe: Recipe, overrides: Sequence[str]) -> Material:
    """Return the run's classifier and its rows."""
    classifier = load_received(folder, recipe, overrides)
    check_max_length(classifier.base.config, classifier.tokenizer, recipe.data.max_length, str(folder.path))
    splits = load_splits(
        recipe.data,
        classifier.problem_type,
        classifier.label_names,
        recipe.seed,
        classifier.tokenizer,
        required=required_splits(recipe),
    )
    return Material(classifier, splits.encoded, splits.summaries)
