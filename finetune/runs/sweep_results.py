"""The folder of a sweep, and its results as stored in `sweep.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.recipe.sweep_space import ParameterValue, SweepObjective, SweepParameter
from finetune.runs.json_files import damaged_file, read_json

EndState = Literal["complete", "pruned", "failed"]
State = Literal[EndState, "running"]


class SweepFolder:
    """The files and folders of one sweep; no other module contains their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials = path / "trials"
        self.storage = path / "study.db"
        self.results = path / "sweep.json"
        self.best_recipe = path / "best_recipe.yaml"
        self.best_run = path / "best"
        self.report = path / "report.html"

    def trial(self, number: int) -> Path:
        """Return the run folder, or series folder, of a trial."""
        return self.trials / f"{number:04}"

    def log(self, number: int) -> Path:
        """Return the file with what a trial printed."""
        return self.trials / f"{number:04}.log"

    def outcome(self, number: int) -> Path:
        """Return the file that is written when the run of a trial is complete."""
        return self.trials / f"{number:04}.json"


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended, as stored beside its folder: a process may be killed before the storage knows.

    Attributes:
        measured: validation metrics, loss and costs by name; {} unless complete.
    """

    state: EndState
    parameters: dict[str, ParameterValue]
    measured: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class SweepTrial:
    """One trial.

    Attributes:
        parameters: parameter name -> value, or name of the option.
        values: objective -> value, of the validation rows (with several seeds, the mean over the seeds). {} if the
            trial failed or is running; a pruned trial has its last value.
        metrics: validation metrics, loss, `train_seconds`, `parameters` and `trainable_parameters` (with several
            seeds, the means); {} unless complete.
        intermediate: evaluation number, from 1 -> value of the first objective, for each evaluation during training.
        seconds: wall-clock time of the trial.
        error: why the trial failed, "" if it did not.
    """

    number: int
    state: State
    parameters: dict[str, ParameterValue]
    values: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    intermediate: dict[int, float] = field(default_factory=dict)
    seconds: float | None = None
    error: str = ""

    @property
    def folder(self) -> str:
        """The path of the trial's run or series folder, relative to the folder of the sweep."""
        return f"trials/{self.number:04}"


@dataclass(frozen=True)
class SweepResult:
    """The content of `sweep.json`.

    Attributes:
        recipe: path of the base recipe, or recipe:NAME.
        sampler: grid, random or tpe.
        pruner: none, median or hyperband.
        seeds: the seeds of each trial; [] if each trial is one run with the seed of the recipe.
        planned: number of trials that the sweep ends with; None if only time limits it.
        trials: all trials that were started, by number.
        best: numbers of the best trials, the one of `best_recipe.yaml` first: one trial for one objective, the Pareto
            front for several.
        importance: objective -> parameter -> share of the variance of the objective that it explains; {} with too few
            trials.
    """

    name: str
    recipe: str
    sampler: str
    pruner: str
    seeds: list[int]
    planned: int | None
    objectives: list[SweepObjective]
    parameters: list[SweepParameter]
    trials: list[SweepTrial]
    best: list[int] = field(default_factory=list)
    importance: dict[str, dict[str, float]] = field(default_factory=dict)

    def trial(self, number: int) -> SweepTrial:
        """Return the trial with a number."""
        return next(trial for trial in self.trials if trial.number == number)

    def finished(self) -> list[SweepTrial]:
        """Return the trials that are not running, by number."""
        return [trial for trial in self.trials if trial.state != "running"]

    def of_state(self, state: State) -> list[SweepTrial]:
        """Return the trials in a state, by number."""
        return [trial for trial in self.trials if trial.state == state]


def best_trials(trials: Sequence[SweepTrial], objectives: Sequence[SweepObjective]) -> list[int]:
    """Return the numbers of the complete trials that no other one beats in every objective, the best first.

    For one objective this is one trial. Trials are compared by the first objective; at equal values the earlier one is
    the better one.
    """
    costs = {
        trial.number: [_cost(trial, objective) for objective in objectives]
        for trial in trials
        if trial.state == "complete"
    }
    ordered = sorted(costs, key=lambda number: (costs[number], number))
    front: list[int] = []
    for number in ordered:
        if not any(all(a <= b for a, b in zip(costs[other], costs[number], strict=True)) for other in front):
            front.append(number)
    return front


def by_first_objective(result: SweepResult) -> list[SweepTrial]:
    """Return the complete trials, the best by the first objective first."""
    objective = result.objectives[0]
    return sorted(result.of_state("complete"), key=lambda trial: (_cost(trial, objective), trial.number))


def _cost(trial: SweepTrial, objective: SweepObjective) -> float:
    """Return the value of an objective, with the sign with which lower is better."""
    value = trial.values[objective.name]
    return value if objective.direction == "minimize" else -value


def is_sweep(path: Path) -> bool:
    """Return whether a folder is that of a sweep."""
    return SweepFolder(path).results.is_file()


def read_sweep(path: Path) -> SweepResult:
    """Return the results in the folder of a sweep; DataError if `sweep.json` is missing or damaged."""
    file = SweepFolder(path).results
    result = read_json(file, SweepResult)
    names, objectives = {parameter.name for parameter in result.parameters}, {each.name for each in result.objectives}
    if not result.objectives:
        raise damaged_file(file, "it has no objective")
    for trial in result.trials:
        if trial.parameters.keys() - names or trial.values.keys() - objectives:
            raise damaged_file(file, f"trial {trial.number} has a parameter or a value that the sweep does not have")
        if trial.state == "complete" and trial.values.keys() != objectives:
            raise damaged_file(file, f"trial {trial.number} is complete, but not every objective has a value")
    if set(result.best) - {trial.number for trial in result.of_state("complete")}:
        raise damaged_file(file, "a best trial is not among the complete trials")
    return result
