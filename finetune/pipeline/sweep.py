"""The command `sweep`: run a recipe with different values of some keys, and find the best ones.

sweep_study.py   the Optuna study: storage, sampler, pruner
sweep_claims.py  which process runs which trial
sweep_trial.py   one trial: run its recipe, and measure it
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from optuna.study import Study
from optuna.trial import Trial, TrialState
from rich.console import Console

from finetune.errors import TrainingError, TrainingStopped
from finetune.pipeline.series_processes import alone
from finetune.pipeline.sweep_claims import Claims
from finetune.pipeline.sweep_study import (
    importance,
    new_pruner,
    open_storage,
    open_study,
    report_storage_errors,
    suggest,
)
from finetune.pipeline.sweep_summary import ERROR, METRICS, SECONDS, best_recipe_text, sweep_result
from finetune.pipeline.sweep_trial import (
    Evaluations,
    RunTrial,
    describe_error,
    objective_values,
    output_to,
    run_trial,
)
from finetune.recipe.sweep_loader import LoadedSweep
from finetune.recipe.sweep_space import ParameterValue
from finetune.report.sweep_page import write_sweep_report
from finetune.report.sweep_table import print_finished, print_started, print_sweep, show_running
from finetune.runs.atomic_files import is_about_the_disk, report_write_errors, write_text
from finetune.runs.json_files import read_json, write_json
from finetune.runs.locks import wait_for_lock
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.sweep_results import EndState, SweepFolder, SweepResult, SweepTrial, TrialOutcome

_SAME_ERRORS = 3  # failed trials with one error, and none that succeeded, that stop the sweep


def sweep(loaded: LoadedSweep, *, run: RunTrial = run_trial) -> SweepResult:
    """Run the trials of a sweep that are missing, and return all results.

    Several processes can run the same sweep at the same time. If one is stopped at any point, the next start continues
    its trial; a finished trial is never repeated.

    Args:
        run: runs the recipe of one trial.

    Raises:
        FinetuneError: the folder or the storage cannot be used, the sweep was started differently, or all trials fail.
    """
    with _one_process(loaded):
        return _sweep(loaded, run)


@contextmanager
def _one_process(loaded: LoadedSweep) -> Iterator[None]:
    """Let each process of a launcher run trials of its own, on its own GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    with alone(int(os.environ.get("LOCAL_RANK", "0")), use_cpu=loaded.example.training.use_cpu):
        yield


def _sweep(loaded: LoadedSweep, run: RunTrial) -> SweepResult:
    """Run trials in this process until none is left, and return all results."""
    folder = SweepFolder(Path(loaded.sweep.output_dir))
    _check_folder(folder)
    with report_write_errors(folder.path):
        folder.trials.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with wait_for_lock(folder.path):  # two processes cannot create the tables of a database at the same time
            storage = stack.enter_context(open_storage(loaded.sweep.storage, folder.storage))
            study = open_study(loaded, storage)
        return _Worker(loaded, folder, study, Claims(study, storage, folder.path, loaded.planned()), run).work()


def _check_folder(folder: SweepFolder) -> None:
    """Raise TrainingError if the folder has files of something else."""
    try:
        names = {file.name for file in folder.path.iterdir()} if folder.path.exists() else set()
    except OSError as error:
        raise TrainingError(
            f"output_dir {folder.path} cannot be used: {error.strerror}; name another folder"
        ) from error
    if names and not folder.trials.is_dir():
        raise TrainingError(f"output_dir {folder.path} is not empty and is not a sweep; name another folder")


@dataclass(frozen=True)
class _Worker:
    """One process that runs trials of a sweep."""

    loaded: LoadedSweep
    folder: SweepFolder
    study: Study
    claims: Claims
    run: RunTrial
    console: Console = field(default_factory=lambda: Console(highlight=False))

    def storage_errors(self) -> AbstractContextManager[None]:
        """Return a context that turns errors of the storage into one message."""
        return report_storage_errors(self.loaded.sweep.storage)

    def work(self) -> SweepResult:
        """Run trials until none is left or the time is over, and return all results."""
        self.check_trials_are_of_this_study()
        print_started(self.console, self.write_results(), self.folder)
        deadline = time.monotonic() + 60 * (self.loaded.sweep.timeout_minutes or float("inf"))
        while time.monotonic() < deadline:
            with self.storage_errors():
                trial = self.claims.next_trial()
            if trial is None:
                break
            self.run_claimed(trial)
            self.check_not_all_fail()
        return self.finish()

    def check_trials_are_of_this_study(self) -> None:
        """Raise TrainingError if the folder has trials that the study does not know."""
        with self.storage_errors():
            count = len(self.study.get_trials(deepcopy=False))
        numbers = [int(path.stem) for path in self.folder.trials.iterdir() if path.stem.isdigit()]
        if unknown := [number for number in numbers if number >= count]:
            raise TrainingError(
                f"{self.folder.trials} has trial {min(unknown)}, which the study '{self.loaded.name}' does not know; "
                "restore its storage, or name another output_dir"
            )

    def run_claimed(self, trial: Trial) -> None:
        """Run a trial of this process unless it was already run, and store how it ended."""
        with self.storage_errors():
            self.study.pruner = new_pruner(self.loaded.sweep.pruner)
            values = {parameter.name: suggest(trial, parameter) for parameter in self.loaded.parameters}
        outcome_file = self.folder.outcome(trial.number)
        outcome = read_json(outcome_file, TrialOutcome) if outcome_file.is_file() else None
        if outcome is None or outcome.parameters != values:
            try:
                outcome = self._run(trial, values)
            except BaseException:  # also a signal: another process need not wait until this one has ended
                with self.storage_errors():
                    self.claims.release(trial)
                raise
            write_json(outcome_file, outcome)
        with self.storage_errors():
            self._tell(trial, outcome)
            workers = max(1, self.claims.workers())
        print_finished(self.console, self.write_results(), trial.number, workers)

    def _run(self, trial: Trial, values: dict[str, ParameterValue]) -> TrialOutcome:
        """Run the recipe of a trial, and return how it ended.

        Raises:
            StorageError: the storage can no longer be reached. The trial can be continued.
            TrainingError: the disk is full, or another process runs the trial. It can be continued.
        """
        number, started = trial.number, time.monotonic()
        objectives = [objective.name for objective in self.loaded.objectives]
        # Optuna prunes by a single objective only.
        evaluations = Evaluations(trial, objectives[0] if len(objectives) == 1 else None, self.loaded.sweep.storage)
        measured: dict[str, float | None] = {}
        state: EndState = "complete"
        error = ""
        with self.claims.heartbeat(trial), show_running(self.console, number, values):
            try:
                with output_to(self.folder.log(number)):
                    recipe = self.loaded.trial_recipe(values, self.folder.trial(number))
                    measured = self.run(recipe, evaluations.add)
                    objective_values(measured, objectives)
            except TrainingStopped:
                state = "pruned"
            except Exception as failure:  # every type: one trial that fails does not end the sweep
                if evaluations.storage_error is not None:
                    raise evaluations.storage_error from failure
                if is_about_the_disk(failure):
                    with report_write_errors(self.folder.trial(number)):
                        raise
                state, error = "failed", describe_error(failure)
        self.delete_checkpoints(number)
        return TrialOutcome(state, values, measured, time.monotonic() - started, error)

    def delete_checkpoints(self, number: int) -> None:
        """Delete the checkpoints of a trial that has ended, and of its runs if it has several seeds."""
        folder = self.folder.trial(number)
        series = SeriesFolder(folder, self.loaded.seeds())
        for run in (RunFolder(folder), *map(series.member, series.seeds)):
            shutil.rmtree(run.checkpoints, ignore_errors=True)

    def _tell(self, trial: Trial, outcome: TrialOutcome) -> None:
        """Store the outcome of a trial in the study; nothing changes if another process has done so."""
        if self.storage_state(trial).is_finished():
            return
        trial.set_user_attr(METRICS, outcome.measured)
        trial.set_user_attr(SECONDS, outcome.seconds)
        if outcome.state == "complete":
            values = objective_values(outcome.measured, [objective.name for objective in self.loaded.objectives])
            self.study.tell(trial, list(values.values()), skip_if_finished=True)
        elif outcome.state == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            trial.set_user_attr(ERROR, outcome.error)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def storage_state(self, trial: Trial) -> TrialState:
        """Return the state of a trial in the storage."""
        return self.claims.storage.get_trial(trial._trial_id).state

    def results(self) -> SweepResult:
        """Return the results so far, without the importance of the parameters."""
        with self.storage_errors():
            return sweep_result(self.loaded, self.claims.trials())

    def write_results(self) -> SweepResult:
        """Write `sweep.json`, and return its content; a lock orders processes that do so at the same time."""
        with wait_for_lock(self.folder.path):
            results = self.results()
            write_json(self.folder.results, results)
        return results

    def check_not_all_fail(self) -> None:
        """Raise TrainingError if the first trials fail with the same error, which no option alone can explain."""
        trials = self.results().trials
        failed = [trial for trial in trials if trial.state == "failed"]
        if any(trial.state in ("complete", "pruned") for trial in trials) or len(failed) < _SAME_ERRORS:
            return
        same_error = len({re.sub(r"\d+", "", trial.error) for trial in failed}) == 1
        varied = [len({str(trial.parameters.get(p.name)) for trial in failed}) for p in self.loaded.parameters]
        single = [p.choices is not None and len(p.choices) == 1 for p in self.loaded.parameters]
        if same_error and all(count > 1 or is_single for count, is_single in zip(varied, single, strict=True)):
            raise TrainingError(self._all_failed(failed))

    def _all_failed(self, failed: Sequence[SweepTrial]) -> str:
        return (
            f"all {len(failed)} trials so far failed; the last with: {failed[-1].error}; see "
            f"{self.folder.log(failed[-1].number)}, correct the cause, and start the sweep with another output_dir"
        )

    def finish(self) -> SweepResult:
        """Write the final results and the best recipe, and print them.

        Raises:
            TrainingError: no trial is complete, and none is running.
        """
        with wait_for_lock(self.folder.path):
            with self.storage_errors():
                results = replace(self.results(), importance=importance(self.study, self.loaded))
            write_json(self.folder.results, results)
            if results.best:
                write_text(self.folder.best_recipe, best_recipe_text(self.loaded, results))
            write_sweep_report(self.folder.path)
        print_sweep(self.console, results, self.folder)
        failed = results.of_state("failed")
        if failed and len(failed) == len(results.trials):
            raise TrainingError(self._all_failed(failed))
        return results
