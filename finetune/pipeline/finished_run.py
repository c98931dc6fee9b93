"""Open a finished run from its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune.data.splits import load_splits
from finetune.distributed import local_main_process_first
from finetune.errors import DataError, RecipeError
from finetune.models.checkpoint_checks import check_max_length, check_token_ids
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.prepare import required_splits
from finetune.pipeline.session import finish, run_locked, start, with_precision
from finetune.recipe import ModelSection, Recipe
from finetune.report.progress import stage
from finetune.runs.run_files import existing_run, read_recipe, read_summary
from finetune.runs.run_folder import RunFolder

# Sections that an override cannot change after training. In `model`, only the location of the base checkpoint and the
# keys that say which files and code are trusted can change.
_FIXED_BY_TRAINING = ("seed", "task", "peft")
_TRUST_KEYS = ("use_safetensors", "trust_remote_code")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, opened: its context and its inputs."""

    context: RunContext
    inputs: RunInputs


@contextmanager
def open_run(path: Path, overrides: Sequence[str] = (), *, read_only_ok: bool = False) -> Iterator[FinishedRun]:
    """Yield the finished run in a folder: its saved classifier, and its rows read again by the recipe.

    The folder is locked in the meantime.

    Args:
        overrides: to the run's recipe, as `section.key=value`.
        read_only_ok: the folder may be one that cannot be written.

    Raises:
        FinetuneError: the folder is not a finished run, one of its files is damaged, its data can no longer be read,
            or another process holds its lock.
    """
    folder = finished_folder(path)
    recipe = finished_recipe(folder, overrides)
    trained_on = read_summary(folder)
    context = start(recipe, folder)
    with run_locked(context, read_only_ok=read_only_ok):
        with stage("opening the run"):
            inputs = local_main_process_first(context.accelerator, partial(_saved_inputs, folder, recipe, overrides))
        splits = trained_on | inputs.summary
        if changed := [name for name in splits if inputs.summary.get(name) != trained_on.get(name)]:
            context.print_line(f"[yellow]The rows differ from those at training: {', '.join(changed)}.[/]")
        yield FinishedRun(context, inputs)
        finish(context)


def finished_folder(path: Path) -> RunFolder:
    """Return the folder of a finished run, at a path given by the user.

    Raises:
        DataError: there is no folder, or its run has no trained model.
    """
    folder = existing_run(path)
    required = (folder.recipe, folder.environment, folder.data, folder.training, folder.model)
    missing = [file.name for file in required if not file.exists()]
    if missing:
        raise DataError(f"{path} is not a finished run (no {', '.join(missing)}); name the folder that `train` wrote")
    return folder


def finished_recipe(folder: RunFolder, overrides: Sequence[str] = (), *, read_data: bool = True) -> Recipe:
    """Return a finished run's recipe with `section.key=value` overrides.

    A received folder must not decide what is trusted: `model.trust_remote_code` and `model.use_safetensors` have
    their defaults unless an override sets them.

    Args:
        read_data: whether the data files must exist because they are read again.

    Raises:
        RecipeError: the recipe or an override is wrong, or an override changes a key that was fixed by training.
    """
    recipe = read_recipe(folder, overrides, read_data=read_data)
    trained = read_recipe(folder, read_data=False)
    changed = [name for name in _FIXED_BY_TRAINING if getattr(recipe, name) != getattr(trained, name)]
    changed += [
        f"model.{name}"
        for name, value in recipe.model
        if name not in (*_TRUST_KEYS, "model_name_or_path") and value != getattr(trained.model, name)
    ]
    if changed:
        raise RecipeError(
            f"{changed[0]} cannot be changed: the run in {folder.path} was trained with it; train a new run instead"
        )
    given = _keys(overrides)
    defaults = {
        key: ModelSection.model_fields[key].default for key in _TRUST_KEYS if not given & {"model", f"model.{key}"}
    }
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=defaults)})
    return with_precision(recipe)


def load_saved_classifier(folder: RunFolder, recipe: Recipe, overrides: Sequence[str] = ()) -> Classifier:
    """Return the classifier of a run folder, loaded as the recipe of `finished_recipe` says.

    Raises:
        ModelError: see `load_classifier`; or the tokenizer has ids for which the model has no embedding.
    """
    moved = _keys(overrides) & {"model", "model.model_name_or_path"}
    classifier = load_classifier(
        folder.model,
        trust_remote_code=recipe.model.trust_remote_code,
        use_safetensors=recipe.model.use_safetensors,
        base=recipe.model.model_name_or_path if moved else None,
    )
    check_token_ids(classifier.base, classifier.tokenizer, str(folder.model))
    return classifier


def _saved_inputs(folder: RunFolder, recipe: Recipe, overrides: Sequence[str]) -> RunInputs:
    """Return the run's classifier and its rows."""
    classifier = load_saved_classifier(folder, recipe, overrides)
    check_max_length(classifier.base.config, classifier.tokenizer, recipe.data.max_length, str(folder.path))
    splits = load_splits(
        recipe.data,
        classifier.problem_type,
        classifier.label_names,
        recipe.seed,
        classifier.tokenizer,
        required=required_splits(recipe),
    )
    return RunInputs(classifier, splits.encoded, splits.summaries)


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0].strip() for override in overrides}
