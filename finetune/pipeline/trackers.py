"""Experiment trackers: TensorBoard, wandb, mlflow and trackio, through the trackers of Accelerate.

Accelerate starts a tracker, sends it values and closes it. This module adds what differs between the libraries: the
name of the run, its folder, its hyperparameters, how a resumed run continues, and what happens if the tracker fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from rich.markup import escape

from finetune.distributed import on_main_process
from finetune.errors import TrainingError, shorten
from finetune.pipeline.context import RunContext
from finetune.pipeline.tracker_libraries import (
    FIXES,
    Hyperparameters,
    Start,
    check_reachable,
    finish,
    how_to_open,
    run_id,
    start_options,
    write_hyperparameters,
)
from finetune.recipe.schema import Recipe
from finetune.runs.json_files import read_json, write_json
from finetune.runs.ownership import discard_new_run
from finetune.runs.results import SplitScores, TrainingResult
from finetune.runs.run_folder import RunFolder

_ROWS = ("train_rows", "validation_rows", "test_rows")
_MAX_NAME = 128  # characters, as in logging.run_name
# Member of a series or trial of a sweep: its folder, and the number of folders up to the folder that names it.
_MEMBERS = ((re.compile(r"seed-\d+"), 1, ""), (re.compile(r"\d{4,}"), 2, "trial-"))


@dataclass(frozen=True)
class TrackerRun:
    """The tracker's run that a resumed run continues: `trackers/run.json`.

    Attributes:
        run_id: the tracker's name of the run; "" for TensorBoard, which has none.
    """

    tracker: str
    run_id: str


def check_tracker(context: RunContext) -> None:
    """Check that the recipe's tracker, if any, can be reached, before the rows are read.

    Raises:
        TrainingError: it cannot. Every process raises it.
    """
    library = context.recipe.logging.report_to
    if library == "none":
        return

    def check() -> None:
        try:
            check_reachable(library)
        except Exception as error:  # every type: each library has its own
            raise _did_not_start(library, error) from error

    on_main_process(context.accelerator, check)


def _did_not_start(library: str, error: Exception) -> TrainingError:
    return TrainingError(
        f"logging.report_to: {library} did not start: {_reason(error)}; {FIXES[library]}, or set "
        "logging.report_to: none"
    )


def start_trackers(context: RunContext, splits: Sequence[str], *, resume_step: int | None = None) -> None:
    """Start the recipe's tracker, if any, on the main process, with the recipe as its hyperparameters.

    Args:
        splits: the splits that will be scored at the end.
        resume_step: the step of the checkpoint that is resumed, to continue the tracker's run; None for a new one.

    Raises:
        TrainingError: the tracker did not start. The outputs of a new run are removed; every process raises it.
    """
    if context.recipe.logging.report_to == "none":
        return

    def start() -> None:
        """Start the tracker; after an error, remove the outputs of a new run and raise TrainingError."""
        try:
            _start(context, splits, resume_step)
        except Exception as error:  # every type: each library has its own
            _abandon(context)
            if resume_step is None:
                discard_new_run(context.folder)
            raise _did_not_start(context.recipe.logging.report_to, error) from error

    on_main_process(context.accelerator, start)


def log_to_trackers(context: RunContext, values: Mapping[str, int | float | None], step: int) -> None:
    """Send values to the tracker, if any, except those that are None. A tracker that fails receives no more values."""
    known = {name: value for name, value in values.items() if value is not None}
    for tracker in list(context.accelerator.trackers):  # empty on all processes except the main one
        try:
            if tracker.name == "wandb":  # after a resume it rejects its own steps, but not repeated values of a metric
                tracker.log({**known, "step": step})
            else:
                tracker.log(known, step=step)
        except Exception as error:  # every type: a tracker must not end a training run
            _abandon(context)
            context.print_line(
                f"[yellow]{tracker.name} failed and receives no more values: {escape(_reason(error))}. The run "
                "continues; its folder has all values.[/]"
            )


def log_entry(context: RunContext, entry: Mapping[str, int | float | None]) -> None:
    """Send an entry of the training history: `train/loss`, `eval/accuracy` and so on, the names that Trainer uses."""
    values = {
        name if name == "epoch" else f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in entry.items()
        if name != "step"
    }
    log_to_trackers(context, values, int(entry["step"] or 0))


def log_final_training(context: RunContext) -> None:
    """Send every number of training.json, such as `final/trainable_parameters`."""
    if not context.accelerator.trackers:
        return
    result = read_json(context.folder.training, TrainingResult)
    values = {**vars(result), **vars(result.speed)}
    numbers = {f"final/{name}": value for name, value in values.items() if isinstance(value, int | float)}
    log_to_trackers(context, numbers, result.steps)


def log_final_scores(context: RunContext, scores: Mapping[str, SplitScores]) -> None:
    """Send the scores of every split, and the bounds of their intervals as `..._low` and `..._high`."""
    if not context.accelerator.trackers:
        return
    values: dict[str, float | None] = {}
    for split, split_scores in scores.items():
        values[f"final/{split}_loss"] = split_scores.loss
        for metric, value in split_scores.metrics.items():
            name = f"final/{split}_{metric}"
            values |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    log_to_trackers(context, values, read_json(context.folder.training, TrainingResult).steps)


def finish_trackers(context: RunContext, *, failed: bool = False) -> None:
    """Close the tracker, if any.

    Args:
        failed: mark the tracker's run as failed.
    """
    trackers, context.accelerator.trackers = context.accelerator.trackers, []
    for tracker in trackers:
        try:
            finish(tracker, context.folder, failed=failed)
        except Exception as error:  # every type: the results are complete, or another error is being reported
            context.print_line(f"[yellow]{tracker.name} was not closed: {escape(_reason(error))}[/]")


@contextmanager
def trackers_finished_on_failure(context: RunContext) -> Iterator[None]:
    """Close the tracker and mark its run as failed if the block raises an error or is interrupted."""
    try:
        yield
    except BaseException:
        finish_trackers(context, failed=True)
        raise


def hyperparameters(recipe: Recipe) -> Hyperparameters:
    """Return the recipe without its rows as one flat table, from `section.key` to a value that every tracker accepts.

    None, lists, and mappings with arbitrary keys become JSON text, as TensorBoard does not accept None. As in the run's
    recipe.yaml, resume_from_checkpoint is null.
    """
    content = recipe.model_dump(mode="json")
    content["data"] = {key: value for key, value in content["data"].items() if key not in _ROWS}
    content["checkpoint"]["resume_from_checkpoint"] = None
    return dict(_flatten(content))


def run_name(recipe: Recipe, folder: Path) -> tuple[str, str | None]:
    """Return the tracker's name of a run, by default the name of its folder, and its group, None if it has none.

    A member of a series is named after the series and its seed, and a trial after its sweep and its number; the group
    is the series or the sweep. Other characters than letters, digits, ".", "-" and "_" become "-", as some trackers
    reject them.
    """
    path, suffixes = folder.absolute(), list[str]()
    for pattern, levels, prefix in _MEMBERS:
        if pattern.fullmatch(path.name) and (levels == 1 or path.parent.name == "trials"):
            suffixes.insert(0, f"-{prefix}{path.name}")
            path = path.parents[levels - 1]
    name = re.sub(r"[^\w.-]+", "-", recipe.logging.run_name or path.name).strip("-.") or recipe.logging.project
    *groups, name = accumulate(suffixes, initial=name[: _MAX_NAME - len("".join(suffixes))])
    return name, groups[-1] if groups else None


def _start(context: RunContext, splits: Sequence[str], resume_step: int | None) -> None:
    """Start the tracker and send it the hyperparameters."""
    recipe, folder, accelerator = context.recipe, context.folder, context.accelerator
    library, project, (name, group) = recipe.logging.report_to, recipe.logging.project, run_name(recipe, folder.path)
    folder.trackers.mkdir(exist_ok=True)
    earlier = None if resume_step is None else _earlier_run(folder, library)
    values = hyperparameters(recipe)
    options = start_options(library, Start(name, group, folder, values, earlier, resume_step))
    if library == "tensorboard":
        project = f"{project}/{name}"  # TensorBoard names a run after its folder
    accelerator.init_trackers(project, init_kwargs={library: options})
    (tracker,) = accelerator.trackers
    write_hyperparameters(tracker, values, _final_names(recipe, splits))
    write_json(folder.trackers / "run.json", TrackerRun(library, run_id(tracker)))
    context.print_line(
        f"Tracker: {library}, project {recipe.logging.project}, run {name}{escape(how_to_open(folder, library))}"
    )


def _earlier_run(folder: RunFolder, library: str) -> str | None:
    """Return the id of the tracker's run that the resumed run continues, None if there is none in this tracker."""
    file = folder.trackers / "run.json"
    earlier = read_json(file, TrackerRun) if file.is_file() else None
    return earlier.run_id if earlier is not None and earlier.tracker == library else None


def _abandon(context: RunContext) -> None:
    """Close a tracker that has failed; closing it may fail as well."""
    trackers, context.accelerator.trackers = context.accelerator.trackers, []
    for tracker in trackers:
        with suppress(Exception):
            finish(tracker, context.folder, failed=True)


def _final_names(recipe: Recipe, splits: Sequence[str]) -> list[str]:
    return [f"final/{split}_{metric}" for split in splits for metric in ("loss", *recipe.metric_names())]


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return shorten(next(iter(str(error).splitlines()), "") or type(error).__name__, 300)


def _flatten(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and not prefix:  # a section
            yield from _flatten(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)
