"""Open a finished run: read its recipe, its classifier and its rows from its folder and data files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetune.data.splits import load_splits, long_text_of
from finetune.distributed import local_main_process_first
from finetune.errors import DataError, RecipeError
from finetune.models.checkpoint_config import check_max_length
from finetune.models.classifier import Classifier
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.load_classifier import load_classifier
from finetune.pipeline.prepare import required_splits
from finetune.pipeline.session import finish, run_locked, start, with_precision
from finetune.progress import stage
from finetune.recipe.schema import ModelSection, Recipe
from finetune.runs.results import SplitSummary
from finetune.runs.run_files import existing_run, read_recipe, read_summary
from finetune.runs.run_folder import RunFolder

# Sections that an override cannot change after training. In `model`, only the location of the base checkpoint and the
# keys that say which files and code are trusted can change.
_FIXED_BY_TRAINING = ("seed", "seeds", "task", "peft")
_TRUST_KEYS = ("use_safetensors", "trust_remote_code")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, opened: its context and its inputs."""

    context: RunContext
    inputs: RunInputs


@contextmanager
def open_run(path: Path, overrides: Sequence[str] = (), *, read_only_ok: bool = False) -> Iterator[FinishedRun]:
    """Yield the finished run in a folder, with its saved classifier and with its rows read again.

    The folder is locked inside the block.

    Args:
        overrides: to the run's recipe, as `section.key=value`.
        read_only_ok: accept a folder that cannot be written, without a lock.

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
        if note := skipped_metrics_note(folder, recipe):
            context.print_line(f"[yellow]{escape(note)}[/]")
        changed = [name for name in trained_on | inputs.summary if not _has_same_rows(trained_on, inputs.summary, name)]
        unchanged = {name: trained_on[name] for name in inputs.summary if name not in changed}
        inputs = replace(inputs, summary=inputs.summary | unchanged)
        if changed:
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

    `model.trust_remote_code` and `model.use_safetensors` have their defaults unless an override sets them, and metrics
    that are loaded from files or the hub are left out: a run folder may come from someone else, and must not decide
    which code and files are trusted.

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
    if recipe.outputs != trained.outputs:
        raise RecipeError(
            "outputs cannot be changed in a finished run, since they are saved with the model. To fit them again "
            f"without training, run `finetune train {folder.recipe} checkpoint.resume_from_checkpoint=auto` with this "
            "change, or set a threshold with `finetune predict --threshold`"
        )
    overridden = _override_keys(overrides)
    defaults = {
        key: ModelSection.model_fields[key].default for key in _TRUST_KEYS if not overridden & {"model", f"model.{key}"}
    }
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=defaults)})
    if not overridden & {"evaluation", "evaluation.metrics"}:
        recipe = recipe.without_loaded_metrics()
    return with_precision(recipe)


def skipped_metrics_note(folder: RunFolder, recipe: Recipe) -> str:
    """Return which metrics of the run are not computed because their code is not trusted, and the fix, or ""."""
    trained = read_recipe(folder, read_data=False)
    skipped = [name for name in trained.loaded_metrics() if name not in recipe.loaded_metrics()]
    if not skipped:
        return ""
    names = ", ".join(trained.evaluation.metrics or ())
    return (
        f"Not computed: {', '.join(skipped)}, because a run folder does not decide which code is run. If you trust the "
        f"code, add 'evaluation.metrics=[{names}]'."
    )


def load_saved_classifier(folder: RunFolder, recipe: Recipe, overrides: Sequence[str] = ()) -> Classifier:
    """Return the trained classifier in a run folder; `recipe` is that of `finished_recipe`.

    Raises:
        ModelError: see `load_classifier`.
    """
    base_is_overridden = bool(_override_keys(overrides) & {"model", "model.model_name_or_path"})
    return load_classifier(
        folder.path,
        trust_remote_code=recipe.model.trust_remote_code,
        use_safetensors=recipe.model.use_safetensors,
        base=recipe.model.model_name_or_path if base_is_overridden else None,
    )


def _saved_inputs(folder: RunFolder, recipe: Recipe, overrides: Sequence[str]) -> RunInputs:
    """Return the run's trained classifier, and its rows read again."""
    classifier = load_saved_classifier(folder, recipe, overrides)
    classifier = replace(classifier, long_text=long_text_of(recipe.data))
    limit = classifier.tokenizer.model_max_length
    check_max_length(classifier.base.config, limit, recipe.data.max_length, str(folder.path))
    splits = load_splits(
        recipe.data_to_read(),
        classifier.problem_type,
        classifier.label_names,
        recipe.rows_seed(),
        classifier.tokenizer,
        required=required_splits(recipe),
    )
    return RunInputs(classifier, splits.encoded, splits.summaries)


def _has_same_rows(trained_on: Mapping[str, SplitSummary], now: Mapping[str, SplitSummary], split: str) -> bool:
    """Return whether a split has the same rows as at training, read in the same way."""
    if not (split in trained_on and split in now):
        return False
    # The hint depends on the limit of the tokenizer, which is saved with that of the run.
    ignored: dict[str, Any] = {"truncation_hint": ""}
    if not trained_on[split].true_lengths:  # a run of an earlier version
        ignored["true_lengths"] = {}
    return replace(trained_on[split], **ignored) == replace(now[split], **ignored)


def _override_keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys of `section.key=value` overrides."""
    return {override.partition("=")[0].strip() for override in overrides}
