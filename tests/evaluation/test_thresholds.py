"""Thresholds tuned on validation rows: finetune/evaluation/thresholds.py."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from finetune.evaluation.thresholds import FOLDS, Columns, Goal, cross_fitted_decisions, fit_thresholds, tune
from finetune.runs.results import MetricValue

F1 = Goal("f1")


def rows(count: int, rates: tuple[float, ...], seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities of labels with these rates, whose log-odds are `shift` too low, and the labels, (N, K)."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, len(rates))) < rates).astype(int)
    log_odds = np.log(rates) + 3 * labels - 1 + rng.normal(size=labels.shape)
    return 1 / (1 + np.exp(-(log_odds - shift))), labels


def f1_of(decided: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * (decided & (labels == 1)).sum() / (decided.sum() + labels.sum()))


def test_the_threshold_of_one_label_has_the_highest_f1() -> None:
    probabilities, labels = rows(400, (0.1,), seed=0)
    tuned = tune(probabilities, labels, F1)
    precision, recall, _ = precision_recall_curve(labels[:, 0], probabilities[:, 0])
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert f1_of(probabilities > tuned.values, labels) == pytest.approx(best)
    assert best > f1_of(probabilities > 0.5, labels)


def test_a_label_with_few_rows_moves_towards_the_common_threshold() -> None:
    # Every label is predicted best at 0.3, only the last one, with a single row, at 0.9.
    probabilities = np.full((101, 3), 0.1)
    labels = np.zeros((101, 3), int)
    labels[:100, :2] = np.arange(100)[:, None] < 50
    probabilities[:50, :2] = 0.4
    probabilities[50:100, :2] = 0.2
    probabilities[:90, 2], probabilities[100, 2], labels[100, 2] = 0.8, 0.95, 1
    common = tune(probabilities[:, :2], labels[:, :2], F1).values[0]
    assert 0.2 < common < 0.4
    values = tune(probabilities, labels, F1).values
    assert values[:2] == pytest.approx([common, common], abs=0.02)
    assert common < values[2] < 0.5  # alone it would be between 0.8 and 0.95
    assert 0.8 < tune(probabilities[:, 2:], labels[:, 2:], F1).values[0] < 0.95


def test_the_cross_fitted_gain_is_that_of_new_rows_and_not_that_of_the_rows_that_tuned() -> None:
    in_sample, cross_fitted, new = [], [], []
    later, later_labels = rows(20_000, (0.3,) * 12, seed=99)
    for seed in range(12):
        probabilities, labels = rows(60, (0.3,) * 12, seed=seed)
        before = f1_of(probabilities > 0.5, labels)
        values = tune(probabilities, labels, F1).values
        in_sample.append(f1_of(probabilities > values, labels) - before)
        cross_fitted.append(f1_of(cross_fitted_decisions(probabilities, labels, F1, seed), labels) - before)
        new.append(f1_of(later > values, later_labels) - f1_of(later > 0.5, later_labels))
    # Means over 12 samples of 60 rows: 0.048 in sample, 0.030 cross-fitted (standard error 0.004), 0.032 on new rows.
    assert np.mean(in_sample) > np.mean(new) + 0.01
    assert np.mean(cross_fitted) == pytest.approx(np.mean(new), abs=0.01)


def test_a_row_never_tunes_the_threshold_that_decides_it() -> None:
    probabilities, labels = rows(50, (0.3,) * 6, seed=3)
    expected = cross_fitted_decisions(probabilities, labels, F1, seed=0)
    same, changed = 0, 0
    for row in range(len(labels)):
        flipped = labels.copy()
        flipped[row, 1:] = 1 - flipped[row, 1:]
        if flipped[row].any() and flipped[row].argmax() == labels[row].argmax():  # the first label decides the fold
            again = cross_fitted_decisions(probabilities, flipped, F1, seed=0)
            assert (again[row] == expected[row]).all()
            same, changed = same + 1, changed + int((again != expected).any())
    assert same > 10
    assert changed > 0  # other rows are decided by thresholds that this row tunes
    assert FOLDS == 5


@pytest.mark.parametrize("recall", [0.8, 0.9])
def test_the_recall_is_reached_on_average_over_samples(recall: float) -> None:
    later, later_labels = rows(20_000, (0.05,), seed=99)
    reached = []
    for seed in range(60):
        probabilities, labels = rows(400, (0.05,), seed=seed)
        tuned = tune(probabilities, labels, Goal("recall", recall))
        assert not tuned.common.any()
        reached.append((later > tuned.values)[later_labels == 1].mean())
    # The mean recall is at least `recall`, and with about 20 rows of the label at most 1 / 21 more (Vovk et al. 2005);
    # the standard error of the mean of 60 samples is 0.01.
    assert recall - 0.02 <= np.mean(reached) <= recall + 1 / 20 + 0.02


def test_thresholds_of_an_overconfident_model_are_exact() -> None:
    log_odds = np.linspace(-25, 5, 400)
    labels = (np.arange(400) % 10 == 9).astype(int)[:, None]
    probabilities = (1 / (1 + np.exp(-log_odds)))[:, None]
    tuned = tune(probabilities, labels, Goal("recall", 0.9))
    assert 0 < tuned.values[0] < 1e-9
    assert (probabilities > tuned.values)[labels == 1].sum() == 40 - (int(0.1 * 41) - 1)


def test_the_precision_is_reached_on_the_tuning_rows_with_a_margin() -> None:
    probabilities, labels = rows(2000, (0.2, 0.2), seed=5)
    tuned = tune(probabilities, labels, Goal("precision", 0.9))
    decided = probabilities > tuned.values
    hits, predicted = (decided & (labels == 1)).sum(0), decided.sum(0)
    assert (hits / (predicted + 1) >= 0.9).all()
    assert (hits > 50).all()
    lower = tune(probabilities, labels, Goal("precision", 0.7))
    assert (lower.values < tuned.values).all()


def test_labels_with_too_few_rows_for_the_goal_use_the_threshold_of_all_labels_and_are_named() -> None:
    probabilities, labels = rows(300, (0.3, 0.3, 0.01), seed=2)
    names = ["a", "b", "rare"]
    common = tune(probabilities.reshape(-1, 1), labels.reshape(-1, 1), Goal("recall", 0.9)).values[0]
    columns = Columns(names, probabilities, labels, probabilities > 0.5)
    fitted = fit_thresholds(columns, Goal("recall", 0.9), metric="f1_micro", seed=0)
    assert fitted.values["rare"] == pytest.approx(common, abs=1e-6)
    (note,) = fitted.notes
    assert "1 of 3 labels have too few rows" in note
    assert note.endswith("all labels together: rare")
    rare = Columns(names[2:], probabilities[:, 2:], labels[:, 2:], probabilities[:, 2:] > 0.5)
    alone = fit_thresholds(rare, Goal("recall", 0.9), metric="f1_micro", seed=0)
    assert "rows with 'rare' are too few, or too hard, to reach a recall of at least 0.9" in alone.notes[0]
    assert (probabilities[:, 2] > alone.values["rare"])[labels[:, 2] == 1].all()
    reversed_columns = Columns(names, 1 - probabilities, labels, probabilities > 0.5)
    hopeless = fit_thresholds(reversed_columns, Goal("precision", 0.99), metric="f1_micro", seed=0)
    assert "no threshold reaches a precision of at least 0.99" in hopeless.notes[0]


@pytest.mark.parametrize(("shift", "gains"), [(-0.4, False), (1.0, True)])
def test_the_gain_has_an_interval(shift: float, gains: bool) -> None:
    probabilities, labels = rows(300, (0.3, 0.3, 0.3, 0.3), seed=1, shift=shift)
    columns = Columns("abcd", probabilities, labels, probabilities > 0.5)
    fitted = fit_thresholds(columns, F1, metric="f1_micro", seed=0)
    assert fitted.gain is not None
    assert fitted.gain.value is not None
    assert fitted.gain.low is not None
    assert (fitted.gain.low > 0) == gains
    decided = cross_fitted_decisions(probabilities, labels, F1, seed=0)
    assert fitted.gain.value == pytest.approx(f1_of(decided, labels) - f1_of(probabilities > 0.5, labels))
    assert fitted.precision == pytest.approx(labels[decided].mean())
    assert fitted.recall == pytest.approx(decided[labels == 1].mean())


def test_the_gain_of_a_label_with_few_rows_has_no_interval() -> None:
    labels = (np.arange(100) < 10).astype(int)[:, None]
    probabilities = 0.1 + 0.3 * (np.arange(100) < 12)[:, None]  # two rows without the label are predicted, too
    columns = Columns(["fraud"], probabilities, labels, probabilities > 0.5)
    fitted = fit_thresholds(columns, F1, metric="f1_micro", seed=0)
    assert fitted.gain == MetricValue(20 / 22, note="no interval: fewer than 20 labels in these rows")
    assert "F1 of fraud +0.909 (no interval: fewer than 20 labels in these rows), precision 0.833" in fitted.text(100)
