"""One trial of a sweep: run its recipe, and measure it on the validation rows."""

from __future__ import annotations

import gc
import math
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from optuna.trial import Trial

from finetune.errors import FinetuneError, TrainingError, shorten
from finetune.pipeline.series import train_series
from finetune.pipeline.sweep_study import StorageError, report_storage_errors
from finetune.pipeline.train import train
from finetune.pipeline.train_stage import OnEvaluation
from finetune.recipe.schema import Recipe
from finetune.runs.json_files import read_json
from finetune.runs.results import TrainingResult
from finetune.runs.run_files import read_scores
from finetune.runs.run_folder import RunFolder, SeriesFolder

_EVALUATIONS = "evaluations"  # attribute of a trial: step -> whether the pruner stopped the trial there
RunTrial = Callable[[Recipe, OnEvaluation], dict[str, float | None]]


def run_trial(recipe: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
    """Run the recipe of a trial, and return its validation metrics, loss and costs by name.

    With several seeds these are means over the seeds; `on_evaluation` is called for the first seed only.

    Raises:
        TrainingStopped: `on_evaluation` returned True.
    """
    try:
        if recipe.seeds is None:
            folders = [train(recipe, on_evaluation=on_evaluation)]
        else:
            seeds = recipe.seeds
            train_series(recipe, on_evaluation=lambda seed, *values: seed == seeds[0] and on_evaluation(*values))
            folders = [SeriesFolder(Path(recipe.output_dir), seeds).member(seed) for seed in seeds]
    finally:
        _free()
    measured = [_measure(folder) for folder in folders]
    return {name: _mean([values[name] for values in measured]) for name in measured[0]}


def _free() -> None:
    """Free the memory of a run, and let the next one choose its own precision and device."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measure(folder: RunFolder) -> dict[str, float | None]:
    """Return the validation metrics, loss and costs of a finished run."""
    scores, training = read_scores(folder)["validation"], read_json(folder.training, TrainingResult)
    return {
        **{name: metric.value for name, metric in scores.metrics.items()},
        "loss": scores.loss,
        "train_seconds": training.speed.train_seconds,
        "parameters": training.total_parameters,
        "trainable_parameters": training.trainable_parameters,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def objective_values(measured: Mapping[str, float | None], names: list[str]) -> dict[str, float]:
    """Return the values of the objectives; TrainingError if one is undefined."""
    values = {}
    for name in names:
        value = measured[name]
        if value is None or not math.isfinite(value):
            raise TrainingError(f"{name} is undefined on the validation rows, so the trial cannot be compared")
        values[name] = value
    return values


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append what is printed in the block to a file, and the traceback of an error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


class Evaluations:
    """The evaluations during one trial, by number from 1; the pruner decides after each whether the trial stops.

    Its decisions are stored, because a trial that is resumed from a checkpoint repeats the evaluations after it.
    """

    def __init__(self, trial: Trial, metric: str | None, storage: str | None) -> None:
        self._trial, self._metric, self._storage = trial, metric, storage
        self._decisions: dict[str, bool] = dict(trial.user_attrs.get(_EVALUATIONS, {}))
        self.storage_error: StorageError | None = None

    def add(self, step: int, values: dict[str, float | None]) -> bool:
        """Report an evaluation, and return whether the trial stops.

        Raises:
            StorageError: the storage cannot be reached.
        """
        value, key = values.get(self._metric or ""), str(step)
        if value is None or not math.isfinite(value):
            return False
        if key not in self._decisions:
            try:
                with report_storage_errors(self._storage):
                    self._trial.report(value, len(self._decisions) + 1)
                    self._decisions[key] = bool(self._trial.should_prune())
                    self._trial.set_user_attr(_EVALUATIONS, self._decisions)
            except StorageError as error:
                self.storage_error = error
                raise
        return self._decisions[key]


def describe_error(error: Exception) -> str:
    """Return an error as one line."""
    text = " ".join(str(error).split())
    return shorten(text if isinstance(error, FinetuneError) else f"{type(error).__name__}: {text}")
