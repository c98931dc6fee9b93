from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, recall_score

from finetune.evaluation.paired_differences import paired_differences
from finetune.evaluation.paired_tests import mcnemar_p_value, row_f1
from finetune.evaluation.run_differences import DifferenceSettings, compare_sides, difference_on_rows
from finetune.runs.results import MetricValue

ROWS = 300
NAMES = ["a", "b", "c"]


def _changed(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the labels with a share of them changed."""
    rng = np.random.default_rng(seed)
    other = 1 - labels if labels.ndim == 2 else (labels + rng.integers(1, 3, labels.shape)) % len(NAMES)
    return np.where(rng.random(labels.shape) < share, other, labels)


def _settings(*metrics: str, names: list[str] = NAMES) -> DifferenceSettings:
    return DifferenceSettings(metrics, metrics[0], names, 200, 0)


def test_two_runs_of_single_label_classification() -> None:
    labels = np.random.default_rng(0).integers(0, 3, ROWS)
    first, second = _changed(labels, 0.3, 1), _changed(labels, 0.1, 2)
    result = difference_on_rows([first], [second], labels, _settings("accuracy", "f1_macro"))
    pair = paired_differences((first, second), labels, ["accuracy", "f1_macro"], num_classes=3)
    for name, expected in pair.items():
        difference = result.metrics[name].difference
        assert difference.value == pytest.approx(expected.value)
        # The normal interval is that of the percentiles: measured 0.002, of a width of 0.12.
        assert np.array([difference.low, difference.high]) == pytest.approx([expected.low, expected.high], abs=0.01)
    assert result.metrics["accuracy"].first == pytest.approx((first == labels).mean())
    lost, gained = ((first == labels) & (second != labels)).sum(), ((first != labels) & (second == labels)).sum()
    assert (result.lost, result.gained) == (lost, gained)
    assert result.test is not None
    assert (result.test.name, result.test.p_value) == ("McNemar's exact test", mcnemar_p_value(lost, gained))
    for index, row in enumerate(result.classes):
        of_class = {"labels": [index], "average": None}
        recalls = [recall_score(labels, model, **of_class)[0] for model in (first, second)]
        scores = [f1_score(labels, model, **of_class)[0] for model in (first, second)]
        assert (row.label, row.support) == (NAMES[index], (labels == index).sum())
        assert row.recall.value == pytest.approx(recalls[1] - recalls[0])
        assert row.f1.value == pytest.approx(scores[1] - scores[0])
        assert row.f1.low is not None
        assert row.f1.low < row.f1.value


def test_two_runs_of_multi_label_classification_and_regression() -> None:
    rng = np.random.default_rng(0)
    sets = rng.integers(0, 2, (ROWS, 3))
    first, second = _changed(sets, 0.3, 1), _changed(sets, 0.2, 2)
    result = difference_on_rows([first], [second], sets, _settings("f1_micro", "subset_accuracy"))
    assert result.test is not None
    assert result.test.subject == "F1 scores of the rows"
    assert result.test.p_value == stats.wilcoxon(row_f1(second, sets) - row_f1(first, sets)).pvalue
    exact = [(model == sets).all(-1) for model in (first, second)]
    assert (result.gained, result.lost) == ((exact[1] & ~exact[0]).sum(), (exact[0] & ~exact[1]).sum())
    assert [row.support for row in result.classes] == sets.sum(0).tolist()
    values = rng.normal(size=ROWS)
    first, second = values + rng.normal(size=ROWS), values + 0.5 * rng.normal(size=ROWS)
    result = difference_on_rows([first], [second], values, _settings("pearson", "mean_absolute_error", names=[]))
    assert result.test is not None
    assert result.test.subject == "absolute errors of the rows"
    assert result.test.p_value == stats.wilcoxon(np.abs(second - values) - np.abs(first - values)).pvalue
    assert (result.gained, result.classes) == (None, [])
    assert result.metrics["pearson"].difference.low > 0  # type: ignore[operator]


def test_series_are_tested_over_seeds_and_rows() -> None:
    labels = np.random.default_rng(0).integers(0, 3, ROWS)
    first = [_changed(labels, share, seed) for seed, share in enumerate((0.1, 0.2, 0.3))]
    second = [_changed(labels, share, seed + 9) for seed, share in enumerate((0.1, 0.15, 0.2))]
    result = difference_on_rows(first, second, labels, _settings("accuracy"))
    difference = result.metrics["accuracy"].difference
    assert result.test is not None
    assert (result.test.name, result.test.subject) == ("t-test over seeds and rows", "accuracy")
    assert difference.low is not None
    assert (result.test.p_value < 0.05) == (difference.low > 0)
    assert result.metrics["accuracy"].second == pytest.approx(np.mean([(model == labels).mean() for model in second]))
    same = difference_on_rows([labels, labels], [labels], labels, _settings("accuracy"))
    assert (same.test, same.metrics["accuracy"].difference.value) == (None, 0)


def test_a_series_is_right_if_most_seeds_are() -> None:
    labels = np.zeros(4, dtype=int)
    first = [np.array(model) for model in ([0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1])]
    second = [np.array([1, 0, 0, 1]), np.array([0, 0, 0, 1])]
    sides = compare_sides(first, second, labels)
    assert sides.first == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert sides.second.tolist() == [0.5, 1, 1, 0]
    assert sides.lost.tolist() == [True, False, False, False]
    assert sides.gained.tolist() == [False, False, True, False]


def test_few_rows_have_no_interval() -> None:
    labels = np.array([0, 1, 1])
    result = difference_on_rows([labels], [1 - labels], labels, _settings("accuracy", names=["a", "b"]))
    assert result.metrics["accuracy"].difference == MetricValue(-1.0)
    assert result.notes == ["3 rows are too few for an interval (at least 10)."]
    assert result.lost == 3
