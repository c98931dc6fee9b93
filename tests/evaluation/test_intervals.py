"""Intervals of classification metrics: finetune/evaluation/intervals.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from finetune.evaluation.intervals import classification_intervals, interval_note, share_interval
from finetune.evaluation.metric_formulas import MULTI_LABEL, SINGLE_LABEL, Counts, confusion_matrix
from finetune.runs.results import MetricValue
from tests.benchmarks.intervals import coverage
from tests.benchmarks.populations import Setting

NAMES = ["a", "b", "c"]


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    actual = rng.choice(3, 200, p=[0.6, 0.3, 0.1])
    return np.where(rng.random(200) < 0.75, actual, rng.integers(0, 3, 200)), actual


def bounds(cell: MetricValue) -> tuple[float, float]:
    """Return the bounds of an interval that contains its value."""
    assert cell.value is not None
    assert cell.low is not None
    assert cell.high is not None
    assert cell.low <= cell.value <= cell.high
    assert cell.note == ""
    return cell.low, cell.high


def test_intervals_of_many_rows_equal_those_of_a_bootstrap(rows: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = (np.tile(labels, 10) for labels in rows)
    metrics, per_class = classification_intervals(predicted, actual, NAMES)
    confusion = confusion_matrix(predicted, actual, 3)
    drawn = np.random.default_rng(1).multinomial(2000, confusion.ravel() / 2000, size=4000).reshape(-1, 3, 3)
    hits = np.diagonal(drawn, axis1=1, axis2=2)
    resampled = Counts(hits, drawn.sum(1), drawn.sum(2), hits.sum(1), 2000)
    for name, metric in SINGLE_LABEL.items():
        # A percentile of 4,000 values has a standard error of 2.67 s / sqrt(4,000) = 0.04 s, and s is 0.01 here.
        assert bounds(metrics[name]) == pytest.approx(np.percentile(metric(resampled), [2.5, 97.5]), abs=0.002)
    assert [row.support for row in per_class] == np.bincount(actual).tolist()


def test_shares_have_the_interval_of_jeffreys(rows: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = rows
    metrics, per_class = classification_intervals(predicted, actual, NAMES)
    right = int((predicted == actual).sum())
    assert bounds(metrics["accuracy"]) == pytest.approx(stats.beta(right + 0.5, 200 - right + 0.5).ppf([0.025, 0.975]))
    assert metrics["f1_micro"] == metrics["accuracy"]
    hits, labeled, chosen = (
        int(mask.sum()) for mask in ((predicted == 1) & (actual == 1), actual == 1, predicted == 1)
    )
    assert bounds(per_class[1].recall) == pytest.approx([float(end) for end in share_interval(hits, labeled)])
    assert bounds(per_class[1].precision) == pytest.approx([float(end) for end in share_interval(hits, chosen)])
    jaccard = np.array([float(end) for end in share_interval(hits, labeled + chosen - hits)])
    assert bounds(per_class[1].f1) == pytest.approx(2 * jaccard / (1 + jaccard))


def test_rows_that_are_all_right_have_an_interval_that_ends_at_1() -> None:
    labels = np.arange(60) % 2
    metrics, per_class = classification_intervals(labels, labels, ["a", "b"])
    for name, cell in metrics.items():
        low, high = bounds(cell)
        assert high == 1
        # Matthews is 2 a - 1 for two classes of equal size and an accuracy of a.
        limit = 1 - (2 if name == "matthews_correlation" else 1) * (1 - float(share_interval(60, 60)[0]))
        assert low == pytest.approx(limit, abs=0.004)
    assert bounds(per_class[0].recall) == pytest.approx([float(end) for end in share_interval(30, 30)])


def test_macro_f1_of_many_classes_lies_inside_of_its_interval_and_is_not_biased() -> None:
    """77 classes of 13 rows: a bootstrap of the rows would give an interval whose upper end is near the value."""
    rng = np.random.default_rng(0)
    actual = np.repeat(np.arange(77), 13)
    predicted = np.where(rng.random(len(actual)) < 0.93, actual, rng.integers(0, 77, len(actual)))
    cell = classification_intervals(predicted, actual, [str(label) for label in range(77)])[0]["f1_macro"]
    low, high = bounds(cell)
    assert cell.value is not None
    assert 0.8 < (high - cell.value) / (cell.value - low) < 1.5


def test_multi_label_intervals() -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 2, (300, 3))
    predicted = np.where(rng.random((300, 3)) < 0.8, actual, 1 - actual)
    metrics, per_class = classification_intervals(predicted, actual, NAMES)
    assert [row.support for row in per_class] == actual.sum(0).tolist()
    right = int((predicted == actual).all(-1).sum())
    assert bounds(metrics["subset_accuracy"]) == pytest.approx([float(end) for end in share_interval(right, 300)])
    drawn = rng.multinomial(300, np.full(300, 1 / 300), size=4000).astype(float)
    resampled = Counts(drawn @ (actual * predicted), drawn @ predicted, drawn @ actual, np.zeros(4000), 300)
    for name in ("f1_micro", "f1_macro", "f1_weighted"):
        # As above; s is 0.012. With 300 rows both methods also differ in the third decimal.
        assert bounds(metrics[name]) == pytest.approx(
            np.percentile(MULTI_LABEL[name](resampled), [2.5, 97.5]), abs=0.005
        )


def test_label_sets_that_are_all_right_have_intervals() -> None:
    sets = np.random.default_rng(0).integers(0, 2, (80, 3))
    metrics, _ = classification_intervals(sets, sets, NAMES)
    for cell in metrics.values():
        low, high = bounds(cell)
        assert high == 1
        assert 0.93 < low < 0.995


def test_few_rows_have_no_interval() -> None:
    metrics, per_class = classification_intervals(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), ["a", "b"])
    assert metrics["accuracy"] == MetricValue(0.75)
    assert per_class[0].f1.low is None
    assert interval_note(1) == "1 row is too few for an interval (at least 10)"
    assert interval_note(20) == ""


def test_classes_with_few_rows_leave_macro_f1_without_an_interval() -> None:
    actual = np.repeat([0, 1, 2], [50, 45, 1])
    predicted = np.where(np.arange(96) % 11 == 0, (actual + 1) % 2, actual)
    metrics, per_class = classification_intervals(predicted, actual, NAMES)
    assert metrics["f1_macro"].note == "no interval: 1 of 3 classes has fewer than 12 rows"
    assert metrics["f1_macro"].low is None
    bounds(metrics["f1_weighted"])
    bounds(per_class[2].recall)
    sets = np.eye(3, dtype=int)[actual]
    assert classification_intervals(np.eye(3, dtype=int)[predicted], sets, NAMES)[0]["f1_macro"].note == (
        "no interval: 1 of 3 labels has fewer than 12 rows"
    )


def test_undefined_metrics_have_no_interval() -> None:
    labels = np.zeros(30, int)
    predicted = np.arange(30) % 2
    metrics, per_class = classification_intervals(predicted, labels, ["a", "b", "c"])
    assert metrics["matthews_correlation"].note == "no interval: all rows have the same label or the same prediction"
    bounds(metrics["accuracy"])
    assert per_class[1].recall == per_class[2].precision == MetricValue(0.0)  # no row counts
    empty = np.zeros((30, 3), int)
    unlabeled, _ = classification_intervals(empty, empty, NAMES)
    assert unlabeled["f1_micro"].note == "no interval: no row has a label or a prediction"
    constant, _ = classification_intervals(np.zeros(30, int), np.zeros(30, int), ["a", "b"])
    assert constant["accuracy"].high == 1
    assert constant["f1_macro"].note == "no interval: all rows have the same influence on it"


def test_the_interval_belongs_to_the_same_definition_as_the_value() -> None:
    # The third label never occurs: its F1 is 0 in multi-label macro F1, for the value and for the interval.
    actual = np.tile([[1, 0, 0], [0, 1, 0]], (20, 1))
    predicted = np.where(np.random.default_rng(0).random(actual.shape) < 0.1, 1 - actual, actual) * [1, 1, 0]
    metrics, _ = classification_intervals(predicted, actual, NAMES)
    cell = metrics["f1_macro"]
    assert cell.value == pytest.approx(f1_score(actual, predicted, average="macro", zero_division=0.0))
    assert bounds(cell)[1] <= 2 / 3


SETTING = Setting("single-label", 6, 200, 0.9, "balanced", "spread")
SETTINGS = [
    SETTING,
    replace(SETTING, classes=2, rows=50, accuracy=0.97),
    replace(SETTING, classes=40, rows=600),
    replace(SETTING, task="multi-label", rows=400, sizes="long tail"),
    replace(SETTING, task="difference"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.task}-{setting.classes}-{setting.rows}")
def test_coverage_is_near_95_percent(setting: Setting) -> None:
    """Of 150 intervals, 95 % plus or minus three standard errors of 1.8 %; of 50 rows, the coverage itself is 97 %."""
    for name, result in coverage(setting, 150, 1).items():
        covered, *_, none = result.shares()
        assert 0.896 <= covered <= 1, name
        assert none < 0.05, name
