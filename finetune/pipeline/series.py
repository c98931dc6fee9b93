"""The command `train` for a recipe with `seeds`: one run per seed on the same rows, and the results of all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.distributed import gather_results, on_main_process
from finetune.errors import FinetuneError, TrainingError, TrainingStopped
from finetune.pipeline.context import SharedWork
from finetune.pipeline.series_processes import SeriesProcesses, series_processes
from finetune.pipeline.series_results import finished_member, series_results
from finetune.pipeline.series_resume import check_resumed, data_checksums
from finetune.pipeline.train import train
from finetune.recipe.schema import Recipe
from finetune.report.series_page import write_series_report
from finetune.report.series_summary import print_series
from finetune.report.terminal import print_line
from finetune.runs.atomic_files import atomic_replace_dir, is_about_the_disk
from finetune.runs.json_files import write_json
from finetune.runs.locks import lock_if_free, locked_file, locked_folder, wait_for_lock
from finetune.runs.ownership import (
    check_output_dir,
    delete_previous_run,
    restore_previous_on_failure,
    series_folder,
    take_series_ownership,
)
from finetune.runs.run_folder import SeriesFolder
from finetune.runs.series import MemberResult, SeriesResult, is_series, read_series

OnSeriesEvaluation = Callable[[int, int, dict[str, float | None]], bool]  # seed, step, values
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Series:
    """A series in progress on this process."""

    recipe: Recipe
    folder: SeriesFolder
    seeds: list[int]
    processes: SeriesProcesses
    console: Console
    shared: SharedWork
    on_evaluation: OnSeriesEvaluation | None

    def print_line(self, text: str) -> None:
        print_line(self.console, text)


def train_series(recipe: Recipe, *, on_evaluation: OnSeriesEvaluation | None = None) -> SeriesResult:
    """Train one run per seed of the recipe, and return the results of all runs.

    Rows are read and tokenized once. With several processes each trains whole runs; with FSDP all train each run
    together. An interrupted series resumes with `checkpoint.resume_from_checkpoint: auto`.

    Args:
        on_evaluation: as for `train`, called with the seed as well.

    Raises:
        FinetuneError: an error that concerns every run, or a run failed; the others have finished.
        TrainingStopped: `on_evaluation` returned True. The folder is that of an interrupted series.
    """
    assert recipe.seeds is not None
    folder = series_folder(Path(recipe.output_dir), recipe.seeds)
    open_series = partial(_open, folder, recipe)
    with series_processes(recipe, folder.path, open_series) as processes:
        shared = SharedWork(is_quiet=not processes.is_main, keeps_process_group=processes.group is not None)
        console = Console(quiet=not processes.is_main and processes.group is not None, highlight=False)
        series = _Series(recipe, folder, recipe.seeds, processes, console, shared, on_evaluation)
        with _discard_if_not_started(series), restore_previous_on_failure(folder, is_main_process=processes.is_main):
            _train_members(series)
            result = _finish(series)
            if processes.is_main:
                print_series(console, result, folder.path)
            _raise_if_failed(result)
    return result


def dry_run_series(recipe: Recipe) -> None:
    """Do the dry run of the first run of a series, after the checks of the folder; keep nothing.

    Raises:
        FinetuneError: an error that the user can fix.
    """
    assert recipe.seeds is not None
    check_output_dir(series_folder(Path(recipe.output_dir), recipe.seeds), recipe)
    train(member_recipe(recipe, recipe.seeds[0]), dry_run=True)


def member_recipe(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe of one run of a series: its seed and its folder, and the rows of the series."""
    return recipe.model_copy(
        update={
            "seed": seed,
            "seeds": None,
            "output_dir": str(Path(recipe.output_dir) / f"seed-{seed}"),
            "overwrite_output_dir": False,
            "data": recipe.data.model_copy(update={"split_seed": recipe.rows_seed()}),
        }
    )


def _open(folder: SeriesFolder, recipe: Recipe) -> None:
    """Check the folder of the series, and write its first files; runs that failed before are trained again.

    Raises:
        FinetuneError: the folder cannot be used, another process writes to it, or another series is to be resumed.
    """
    assert recipe.seeds is not None
    check_output_dir(folder, recipe)
    checksums = data_checksums(recipe.data)
    resumed = recipe.checkpoint.resume_from_checkpoint is not None and is_series(folder.path)
    with locked_folder(folder.path), ExitStack() as locks:
        check_output_dir(folder, recipe)
        members = {seed: MemberResult(seed) for seed in recipe.seeds}
        if resumed:
            stored = read_series(folder.path)
            check_resumed(folder, recipe, stored, checksums)
            for member in stored.members:
                is_finished = member.status == "finished" and folder.member(member.seed).has_model()
                members[member.seed] = member if is_finished else replace(member, status="unfinished", error="")
        else:
            for seed in folder.seeds:
                locks.enter_context(locked_file(folder.lock(seed), folder.path))
        result = SeriesResult(recipe.best_metric(), list(members.values()), data_checksums=checksums)
        take_series_ownership(folder, recipe, result)


def _train_members(series: _Series) -> None:
    """Train the runs that no process has finished, until all are done; wait for those of other processes."""
    waits_for: set[int] = set()
    while seeds := _unsettled(series):
        trained = False
        for seed in seeds:
            with _claimed(series, seed) as is_free:
                if is_free and seed in _unsettled(series):
                    _train_member(series, seed)
                    trained = True
        if trained:
            continue
        if waiting := set(_unsettled(series)) - waits_for:
            waits_for |= waiting
            names = ", ".join(map(str, sorted(waiting)))
            series.print_line(f"Process {series.processes.index} waits for seeds that others train: {names}.")
        time.sleep(_POLL_SECONDS)


def _unsettled(series: _Series) -> list[int]:
    """Return the seeds that have neither finished nor failed, the same on all processes that train together."""

    def read() -> list[int]:
        members = read_series(series.folder.path).members
        return [member.seed for member in members if member.status == "unfinished" and member.seed in series.seeds]

    return read() if series.processes.group is None else gather_results(series.processes.group, read)[0]


@contextmanager
def _claimed(series: _Series, seed: int) -> Iterator[bool]:
    """Hold the lock of a seed and yield whether it was free; processes that train together hold it as one."""
    target, group = series.folder.member(seed).path, series.processes.group
    with ExitStack() as stack:

        def claim() -> bool:
            if not series.processes.is_main and group is not None:
                return True
            return stack.enter_context(lock_if_free(series.folder.lock(seed), target))

        yield claim() if group is None else all(gather_results(group, claim))


def _train_member(series: _Series, seed: int) -> None:
    """Train the run of one seed, from its checkpoint if it has one, and record how it ended.

    Raises:
        FinetuneError: no run has started yet, or the disk is full, so the error concerns all of them.
    """
    folder, number = series.folder.member(seed), series.seeds.index(seed) + 1
    resume = {"resume_from_checkpoint": "auto" if folder.path.exists() else None}
    recipe = member_recipe(series.recipe, seed)
    recipe = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update=resume)})
    where = f" on process {series.processes.index}" if series.processes.count > 1 and not series.processes.group else ""
    series.print_line(f"\nSeed {seed} ({number} of {len(series.seeds)}){where}: {escape(str(folder.path))}")
    hook = None if series.on_evaluation is None else partial(series.on_evaluation, seed)
    started = time.perf_counter()
    outcome: Callable[[MemberResult], MemberResult] = _unchanged
    try:
        train(recipe, on_evaluation=hook, shared=series.shared)
        outcome = partial(finished_member, folder=folder)
    except TrainingStopped:
        raise
    except FinetuneError as error:
        is_first = not folder.recipe.exists() and not (series.folder.has_model() or series.folder.has_checkpoint())
        if is_first or is_about_the_disk(error):
            raise
        outcome = partial(_failed, reason=str(error))
        series.print_line(f"[red]Seed {seed} failed[/]: {escape(str(error))}")
    finally:
        seconds = time.perf_counter() - started
        _record(series, seed, lambda member: replace(outcome(member), seconds=member.seconds + seconds))


def _unchanged(member: MemberResult) -> MemberResult:
    return member


def _failed(member: MemberResult, reason: str) -> MemberResult:
    return replace(member, status="failed", error=reason)


def _record(series: _Series, seed: int, change: Callable[[MemberResult], MemberResult]) -> None:
    """Change the record of one run in `series.json`."""
    if not series.processes.is_main and series.processes.group is not None:
        return
    if not is_series(series.folder.path):
        return
    with wait_for_lock(series.folder.path):
        result = read_series(series.folder.path)
        members = [change(member) if member.seed == seed else member for member in result.members]
        write_json(series.folder.results, replace(result, members=members))


def _finish(series: _Series) -> SeriesResult:
    """Write the results, the model and the report of the series, and return the results."""
    if series.processes.group is not None:
        on_main_process(series.processes.group, partial(_write_results, series))
        result = read_series(series.folder.path)
        series.processes.group.destroy_process_group()
        return result
    with wait_for_lock(series.folder.path):
        _write_results(series)
    return read_series(series.folder.path)


def _write_results(series: _Series) -> None:
    folder, stored = series.folder, read_series(series.folder.path)
    if stored.chosen_seed is not None and not stored.with_status("unfinished") and folder.report.exists():
        return  # another process has written them
    result = replace(series_results(folder, series.recipe, stored.members), data_checksums=stored.data_checksums)
    if result.chosen_seed is not None:
        with atomic_replace_dir(folder.model) as temporary:
            shutil.copytree(folder.member(result.chosen_seed).model, temporary, dirs_exist_ok=True)
    write_json(folder.results, result)
    if result.chosen_seed is not None:
        write_series_report(folder.path)
        delete_previous_run(folder)


def _raise_if_failed(result: SeriesResult) -> None:
    """Raise TrainingError if a run failed, with the reason of each."""
    failed = result.with_status("failed")
    if failed:
        listed = "".join(f"\n  seed {member.seed}: {member.error}" for member in failed)
        raise TrainingError(
            f"{len(failed)} of {len(result.members)} runs failed:{listed}\ncorrect this, and start the same recipe "
            "with checkpoint.resume_from_checkpoint=auto to train only these again"
        )


@contextmanager
def _discard_if_not_started(series: _Series) -> Iterator[None]:
    """Remove the first files of the series on any error in the block if no run has written anything."""
    folder = series.folder
    try:
        yield
    except BaseException:
        if series.processes.is_main and not any(folder.member(seed).path.exists() for seed in folder.seeds):
            for path in (folder.recipe, folder.results):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # other files are in it
                folder.path.rmdir()
        raise
