from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.json_files import write_json
from finetune.runs.sweep_results import (
    SweepFolder,
    SweepObjective,
    SweepParameter,
    SweepResult,
    SweepTrial,
    best_trials,
    is_sweep,
    read_sweep,
)

RATE = "training.learning_rate"
COMPLETE = SweepTrial(0, "complete", {RATE: 1, "peft": None}, {"accuracy": 0.5}, {"loss": None}, {1: 0.25}, 3.5)
FAILED = SweepTrial(1, "failed", {RATE: 1.0, "peft": "a"}, error="no rows")
RESULT = SweepResult(
    name="rates",
    recipe="recipe:toy",
    sampler="random",
    pruner="none",
    seeds=[],
    planned=2,
    objectives=[SweepObjective("accuracy", "maximize")],
    parameters=[SweepParameter(RATE, low=1e-5, high=1e-3, log=True), SweepParameter("peft", choices=[None, "a", True])],
    trials=[COMPLETE, FAILED],
    best=[0],
    importance={"accuracy": {RATE: 1.0}},
)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert not is_sweep(tmp_path)
    write_json(SweepFolder(tmp_path).results, RESULT)
    assert is_sweep(tmp_path)
    result = read_sweep(tmp_path)
    assert result == RESULT
    assert [type(trial.parameters[RATE]) for trial in result.trials] == [int, float]
    assert (result.trial(1), result.of_state("failed")) == (FAILED, [FAILED])
    assert tmp_path / COMPLETE.folder == SweepFolder(tmp_path).trial(0)


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (replace(RESULT, objectives=[]), "it has no objective"),
        (replace(RESULT, best=[1]), "a best trial is not among the complete trials"),
        (replace(RESULT, trials=[replace(COMPLETE, values={})]), "trial 0 is complete, but not every objective has"),
        (replace(RESULT, trials=[replace(FAILED, parameters={"x": 1})]), "trial 1 has a parameter or a value that the"),
    ],
)
def test_inconsistent_results_are_reported_as_damaged(damaged: SweepResult, reason: str, tmp_path: Path) -> None:
    write_json(SweepFolder(tmp_path).results, damaged)
    with pytest.raises(DataError, match=rf"sweep.json is damaged .*{reason}.*; start the sweep again with the same fi"):
        read_sweep(tmp_path)


def trial(number: int, accuracy: float, seconds: float) -> SweepTrial:
    return SweepTrial(number, "complete", {}, values={"accuracy": accuracy, "train_seconds": seconds})


def test_the_best_trials_are_those_of_the_direction_of_each_objective() -> None:
    trials = [
        trial(0, 0.8, 3.0),
        trial(1, 0.9, 9.0),
        trial(2, 0.8, 2.0),
        trial(3, 0.7, 5.0),
        trial(4, 0.9, 9.0),
        FAILED,
    ]
    accuracy, seconds = SweepObjective("accuracy", "maximize"), SweepObjective("train_seconds", "minimize")
    assert best_trials([*trials, FAILED], [accuracy]) == [1]  # the earlier one of two equal ones
    assert best_trials(trials, [seconds]) == [2]
    assert best_trials(trials, [accuracy, seconds]) == [1, 2]
    assert best_trials(trials, [seconds, accuracy]) == [2, 1]
    assert best_trials([FAILED], [accuracy]) == []
