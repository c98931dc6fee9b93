from __future__ import annotations

from pathlib import Path

import pytest

from finetune.report.sweep_figures import short_names, sweep_figures
from finetune.report.sweep_page import write_sweep_report
from finetune.runs.json_files import write_json
from finetune.runs.run_folder import RunFolder
from finetune.runs.sweep_results import SweepFolder, SweepObjective, SweepParameter, SweepResult, SweepTrial
from tests.runs.test_trial_measures import SCORES, write_run

RATE = SweepParameter("training.learning_rate", low=1e-5, high=1e-3, log=True)
RANK = SweepParameter("peft.r", low=2.0, high=32.0)
HEADS = SweepParameter(
    "heads", ["1 x 64", "2 x 32"], settings={"1 x 64": {"a.b": 1, "a.c": 64}, "2 x 32": {"a.b": 2, "a.c": 32}}
)
ACCURACY, SECONDS = SweepObjective("accuracy", "maximize"), SweepObjective("train_seconds", "minimize")


def complete(number: int, **values: float) -> SweepTrial:
    parameters = {RATE.name: 1e-5 * (number + 1), RANK.name: 2 + number, HEADS.name: ["1 x 64", "2 x 32"][number % 2]}
    return SweepTrial(number, "complete", dict(parameters), values, {"accuracy": 0.5}, {1: 0.4}, 12.3)


def sweep(*trials: SweepTrial, best: list[int], objectives: tuple[SweepObjective, ...] = (ACCURACY,)) -> SweepResult:
    importance = {"accuracy": {RATE.name: 0.7, "heads": 0.3}} if len(trials) > 1 and best else {}
    return SweepResult(
        "rates",
        "recipe:toy",
        "tpe",
        "none",
        [],
        9,
        list(objectives),
        [RATE, RANK, HEADS],
        list(trials),
        best,
        importance,
    )


def page(result: SweepResult, folder: Path) -> str:
    write_json(SweepFolder(folder).results, result)
    if result.best:
        SweepFolder(folder).best_recipe.write_text("seed: 7  # the best\n")
    return " ".join(write_sweep_report(folder).read_text(encoding="utf-8").split("<body>")[1].split())


def test_the_page_shows_every_trial_the_plots_and_the_best_recipe(tmp_path: Path) -> None:
    trials = [
        complete(0, accuracy=0.61),
        SweepTrial(1, "pruned", complete(1).parameters, {"accuracy": 0.3}, {}, {1: 0.3}, 4.0),
        SweepTrial(2, "failed", complete(2).parameters, {}, {}, {}, 1.0, "the loss is <nan>"),
        complete(4, accuracy=0.8125),  # trial 3 was never started
        SweepTrial(5, "running", complete(5).parameters),
    ]
    write_run(RunFolder(SweepFolder(tmp_path).trial(4)), SCORES, removable=3)
    html = page(sweep(*trials, best=[4]), tmp_path)
    for expected in (
        "5 trials (2 complete, 1 pruned, 1 failed, 1 running) of 9", "This sweep is not finished", "0.8125",
        "Best: learning_rate 5e-05, r 6, heads 1 x 64.", "the loss is &lt;nan&gt;", "seed: 7 # the best",
        "a.b=2, a.c=32", "test accuracy", "0.750 [0.650, 0.850]", "does not use them", "1 of 5 trials failed",
    ):  # fmt: skip
        assert expected in html, expected
    for figure in ("history-0", "importance-0", "parallel-0", "slice-0"):
        assert f'<section id="{figure}"' in html
    assert html.count('<td data-value="0.') >= 2


def test_one_complete_trial_is_enough_for_a_page(tmp_path: Path) -> None:
    html = page(sweep(complete(0, accuracy=0.5), best=[0]), tmp_path)
    assert "1 trial (1 complete) of 9" in html
    assert 'id="history-0"' in html
    assert 'id="parallel-0"' not in html


@pytest.mark.parametrize("trials", [[], [SweepTrial(0, "failed", {}, error="no memory")]])
def test_without_a_complete_trial_there_are_no_plots(trials: list[SweepTrial], tmp_path: Path) -> None:
    html = page(sweep(*trials, best=[]), tmp_path)
    assert ("No trial is complete" in html) == bool(trials)
    assert 'id="history' not in html
    assert "Best recipe" not in html
    assert sweep_figures(sweep(*trials, best=[])) == []


def test_two_objectives_have_a_front_and_plots_of_their_own(tmp_path: Path) -> None:
    trials = [complete(number, accuracy=0.5 + number / 10, train_seconds=20.0 + number) for number in range(3)]
    result = sweep(*trials, best=[2, 1, 0], objectives=(ACCURACY, SECONDS))
    figures = sweep_figures(result)
    assert [figure.key for figure in figures] == [
        "front", "history-0", "importance-0", "parallel-0", "slice-0", "history-1", "parallel-1", "slice-1",
    ]  # fmt: skip
    assert figures[1].title == "History: validation accuracy"
    assert figures[4].charts[2].option["xAxis"]["data"] == ["1 x 64", "2 x 32"]
    html = page(result, tmp_path)
    assert "Pareto front, trials that no other trial beats in every objective: 0, 1, 2." in html


def test_parameters_with_the_same_last_part_keep_their_names() -> None:
    names = short_names([RATE, SweepParameter("peft.learning_rate"), RANK])
    assert names == {RATE.name: RATE.name, "peft.learning_rate": "peft.learning_rate", "peft.r": "r"}
