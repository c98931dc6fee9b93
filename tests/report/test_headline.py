"""The sentence at the top of the report, for every kind of run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune.recipe.schema import Recipe
from finetune.report.headline import cautions, headline
from finetune.report.run_record import RunRecord
from finetune.runs.baselines import BaselineComparison, BaselineInfo, BaselineScores, SplitComparison
from finetune.runs.head_results import HeadAnalysis, HeadScores, PruningCurve, PruningCurves
from finetune.runs.results import Environment, MetricValue, SplitScores, SplitSummary, TrainingResult, TrainingSpeed

ACCURACY = MetricValue(0.891, 0.876, 0.905)
TRAINING = TrainingResult(
    9, 9, "accuracy", 0.9, "all epochs done", 10, 20, "float32", TrainingSpeed(1.0, 2.0, 3.0, 0.1, 4.0, 5.0)
)
RECIPE: dict[str, Any] = {"output_dir": "x", "model": {"model_name_or_path": "m"}, "data": {"train_file": "a.csv"}}


def record(scores: dict[str, SplitScores], **changes: Any) -> RunRecord:
    run = RunRecord(
        recipe=Recipe.model_validate(RECIPE),
        environment=Environment("", "1", {}, "3", "cpu", 1, "no", 1),
        data={"train": SplitSummary(40, {"no": 20, "yes": 20}, 7.0, 9, 0.0)},
        history=[],
        training=TRAINING,
        scores=scores,
        heads=None,
        head_note="",
        worst=[],
        examples=[],
    )
    return replace(run, **changes)


def scores(value: MetricValue = ACCURACY, metric: str = "accuracy", rows: int = 1821, **more: Any) -> SplitScores:
    return SplitScores(rows, 0.3, {"f1_macro": MetricValue(0.5), metric: value}, **more)


def baselines(*differences: MetricValue, metric: str = "accuracy", values: tuple[float, ...]) -> BaselineComparison:
    names = ["majority", "tfidf"][: len(values)]
    results = {
        name: BaselineScores({metric: value}, {metric: difference})
        for name, value, difference in zip(names, values, differences, strict=True)
    }
    fitted = {name: BaselineInfo({"majority": "the majority", "tfidf": "TF-IDF"}[name], 40) for name in names}
    return BaselineComparison(metric, fitted, {}, 1.0, {"test": SplitComparison(1821, {metric: 0.9}, results)})


def heads(*by_count: float, metric: str = "accuracy", whole: float = 0.9) -> HeadAnalysis:
    order = [(0, head) for head in range(len(by_count) + 1)]
    table: list[list[float | None]] = [[0.1] * len(order)]
    curve = PruningCurve("gradient", [0.5], 0.5, by_count=list(by_count))
    curves = PruningCurves(metric, "validation", 300, whole, [0.5], [curve], None)
    return HeadAnalysis([HeadScores("gradient", "E|g|", "train", 9, table, table, order)], curves)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (record({"test": scores()}), "0.891 accuracy on 1,821 test rows [0.876, 0.905]."),
        (record({}), "There are no validation or test rows, so there are no scores."),
        (record({"validation": scores(MetricValue(1.0), rows=1)}), "1.000 accuracy on 1 validation row."),
        (record({"test": scores(MetricValue(None))}), "The accuracy is undefined on 1,821 test rows."),
        (
            record({"test": scores()}, training=replace(TRAINING, best_metric="loss")),
            "0.500 f1 macro on 1,821 test rows.",
        ),
        (
            record(
                {"test": scores()},
                baselines=baselines(
                    MetricValue(0.3, 0.2, 0.4), MetricValue(0.08, 0.062, 0.098), values=(0.5, 0.81)
                ),
                heads=heads(0.9, 0.89, 0.88, 0.6),
            ),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905], 0.080 [0.062, 0.098] above TF-IDF; 2 of 5 heads can be "
            "removed before it falls below that interval.",
        ),
        (
            record({"test": scores()}, baselines=baselines(MetricValue(0.01, -0.01, 0.03), values=(0.88,))),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905], no better than the majority (difference +0.010 [-0.010, "
            "+0.030]).",
        ),
        (
            record({"test": scores()}, baselines=baselines(MetricValue(-0.05, -0.07, -0.03), values=(0.94,))),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905], 0.050 [0.030, 0.070] below the majority, which is "
            "better.",
        ),
        (
            record({"test": scores()}, baselines=baselines(MetricValue(0.1), values=(0.79,))),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905], 0.100 above the majority (no interval).",
        ),
        (
            record({"test": scores()}, baselines=baselines(MetricValue(0.0), values=(0.89,))),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905], equal to the majority.",
        ),
        (
            record({"test": scores()}, heads=heads(0.5, 0.4)),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905]; no head can be removed before it falls below that "
            "interval.",
        ),
        (  # a pruning curve of another metric says nothing about this score
            record({"test": scores()}, heads=heads(0.9, 0.9, metric="f1_macro")),
            "0.891 accuracy on 1,821 test rows [0.876, 0.905].",
        ),
        (  # a lower error is better, and its pruning curve is negated
            record(
                {"test": scores(MetricValue(0.5, 0.4, 0.6), "mean_squared_error")},
                training=replace(TRAINING, best_metric="mean_squared_error"),
                baselines=baselines(
                    MetricValue(-0.4, -0.5, -0.3), MetricValue(-0.2, -0.3, -0.1),
                    metric="mean_squared_error", values=(0.9, 0.7),
                ),
                heads=heads(-0.55, -0.7, metric="mean_squared_error", whole=-0.5),
            ),
            "0.500 mean squared error on 1,821 test rows [0.400, 0.600], 0.200 [0.100, 0.300] below TF-IDF; 1 of 3 "
            "heads can be removed before it rises above that interval.",
        ),
    ],
)  # fmt: skip
def test_the_headline_says_what_the_run_measured(run: RunRecord, expected: str) -> None:
    assert headline(run) == expected


def test_cautions_name_every_reason_to_doubt_the_scores() -> None:
    evaluations: list[dict[str, int | float | None]] = [{"step": step, "eval_loss": 0.5} for step in (1, 2)]
    run = record(
        {"validation": scores(rows=40, warnings=["not above chance"])},
        history=evaluations,
        data={"validation": SplitSummary(40, {}, 7.0, 9, 0.0, rows_also_in_train=3)},
        heads=heads(0.9, 0.89),
    )
    text = "\n".join(cautions(run))
    for expected in (
        "The validation rows also selected the weights, the best of 2 evaluations",
        "3 of 40 validation rows are also training rows",
        "validation: not above chance.",
        "The validation split has only 40 rows",
        "comes from 300 validation rows",
    ):
        assert expected in text
    few = replace(run, scores={"validation": scores(rows=4, interval_note="4 rows are too few")})
    assert "validation: 4 rows are too few." in cautions(few)
    assert not any("has only" in caution for caution in cautions(few))


def test_test_rows_that_selected_nothing_need_no_caution() -> None:
    assert (
        cautions(record({"test": scores(), "validation": scores()}, history=[{"step": 1, "eval_loss": 0.5}] * 2)) == []
    )
