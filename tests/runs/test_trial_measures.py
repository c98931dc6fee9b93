from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from scipy import stats

from finetune.runs.head_results import HeadAnalysis, HeadScores, PruningCurve, PruningCurves
from finetune.runs.json_files import write_json
from finetune.runs.results import MetricValue, SplitScores, TrainingResult, TrainingSpeed
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import MemberResult, SeedStatistics, SeriesResult
from finetune.runs.trial_measures import Measure, mean_over_seeds, read_measures

SCORES = {"validation": 0.7, "test": 0.75, "train": 0.9}


def write_run(run: RunFolder, scores: Mapping[str, float], removable: int) -> None:
    """Write the results of a run whose four heads can be removed up to `removable` of them."""
    run.path.mkdir(parents=True)
    values = {split: MetricValue(value, value - 0.1, value + 0.1) for split, value in scores.items()}
    write_json(run.scores, {split: SplitScores(9, 0.5, {"accuracy": value}) for split, value in values.items()})
    speed = TrainingSpeed(12.0, 45.6, 1000.0, 0.05, 200.0, 900.0)
    training = TrainingResult(8, 4, "loss", 0.5, "all epochs done", 1000, 2000, "float32", speed)
    write_json(run.training, {**training.__dict__, "flops_per_row": 1234567, "seconds_per_epoch": 3.0})
    by_count = [0.7 if count <= removable else 0.5 for count in (1, 2, 3)]
    curve = PruningCurve("gradient", [0.7] * 9, 0.7, None, by_count)
    curves = PruningCurves("accuracy", "validation", 9, 0.7, [tenth / 10 for tenth in range(1, 10)], [curve], None)
    order = [(0, head) for head in range(4)]
    write_json(
        run.heads,
        HeadAnalysis([HeadScores("gradient", "", "train", 9, [[1.0] * 4], [[None] * 4], order)], curves),
    )


def test_a_run_has_the_intervals_of_its_scores_and_single_values(tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path / "run"), SCORES, removable=2)
    measures = {measure.title: measure.text() for measure in read_measures(tmp_path / "run", "accuracy")}
    assert measures == {
        "validation accuracy": "0.700 [0.600, 0.800]",
        "test accuracy": "0.750 [0.650, 0.850]",
        "train minus test accuracy": "0.150",
        "parameters": "2,000",
        "FLOPs per row": "1,234,567",
        "seconds per epoch": "3",
        "heads removable within 0.01": "2.0",
    }


def test_a_series_has_means_over_its_finished_runs(tmp_path: Path) -> None:
    folder, members = SeriesFolder(tmp_path), []
    for seed, (train, removable) in enumerate([(0.9, 1), (0.95, 3)], start=1):
        write_run(folder.member(seed), {**SCORES, "train": train}, removable)
        members.append(
            MemberResult(seed, "finished", scores={"test": {"accuracy": 0.75}, "train": {"accuracy": train}})
        )
    members.append(MemberResult(3, "failed", "no memory"))
    mean = SeedStatistics(MetricValue(0.75, 0.7, 0.8), 0.01)
    splits = {"test": {"accuracy": mean}, "train": {"accuracy": SeedStatistics(MetricValue(0.9), 0.01)}}
    write_json(folder.results, SeriesResult("accuracy", members, {"test": 9}, splits, "", 1))
    measures = {measure.title: measure for measure in read_measures(tmp_path, "accuracy")}
    assert measures["test accuracy"].value == mean.mean
    assert "validation accuracy" not in measures
    gap = measures["train minus test accuracy"].value
    width = stats.t.ppf(0.975, 1) * 0.05 / 2
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.175, 0.175 - width, 0.175 + width))
    assert measures["heads removable within 0.01"].value.value == 2
    assert measures["heads removable within 0.01"].text().startswith("2.0 [")
    assert measures["parameters"].text() == "2,000"


def test_what_a_run_did_not_measure_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_run(run, {"validation": 0.7}, removable=2)
    run.heads.unlink()
    titles = [measure.title for measure in read_measures(run.path, "accuracy")]
    assert titles == ["validation accuracy", "parameters", "FLOPs per row", "seconds per epoch"]
    assert next(iter(read_measures(run.path, "loss"))).text() == "0.500"
    run.scores.unlink()
    assert [measure.title for measure in read_measures(run.path, "accuracy")] == titles[1:]


def test_the_mean_over_seeds_has_a_t_interval() -> None:
    mean = mean_over_seeds([1.0, 2.0, 6.0])
    half = stats.t.ppf(0.975, 2) * math.sqrt(7.0 / 3)
    assert (mean.value, mean.low, mean.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    assert mean_over_seeds([2.0, 2.0]) == MetricValue(2.0)
    assert mean_over_seeds([2.0, None]) == mean_over_seeds([]) == MetricValue(None)
    assert Measure("x", MetricValue(None)).text() == "undefined"
