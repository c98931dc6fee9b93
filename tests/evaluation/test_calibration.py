from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from finetune.evaluation.calibration import (
    MIN_INTERVAL_ROWS,
    Confidences,
    brier_scores,
    calibration_error,
    confidences_of,
    log_losses,
    mean_with_interval,
    risk_coverage_area,
)

OPTIONS = {"samples": 200, "seed": 1}


def overconfident(rows: int, sharpness: float, seed: int) -> Confidences:
    """Return confidences sigmoid(sharpness z) of rows that are right with probability sigmoid(z)."""
    rng = np.random.default_rng(seed)
    z = np.abs(rng.normal(2.5, 1.5, rows))
    right = rng.random(rows) < 1 / (1 + np.exp(-z))
    return Confidences(1 / (1 + np.exp(-sharpness * z))[:, None], right.astype(float)[:, None])


def true_error(sharpness: float) -> float:
    z = np.abs(np.random.default_rng(99).normal(2.5, 1.5, 400_000))
    return float(np.abs(1 / (1 + np.exp(-z)) - 1 / (1 + np.exp(-sharpness * z))).mean())


def plain_error(rows: Confidences) -> float:
    bins = rows.bins().ravel()
    gaps = [rows.confidence[bins == bin_] - rows.correct[bins == bin_] for bin_ in np.unique(bins)]
    return float(sum(abs(gap.sum()) for gap in gaps) / len(bins))


@pytest.mark.parametrize(("rows", "sizes"), [(5, [5]), (25, [13, 12]), (104, [10, 11, 10, 11, 10]), (1000, [100] * 10)])
def test_bins_hold_equally_many_rows_of_the_highest_confidence_first(rows: int, sizes: list[int]) -> None:
    confidences = overconfident(rows, 1.0, 0)
    bins = confidences.bins().ravel()
    counts = np.bincount(bins).tolist()
    assert counts[: len(sizes)] == sizes
    assert sum(counts) == rows
    lowest = [confidences.confidence.ravel()[bins == number].min() for number in range(len(counts))]
    highest = [confidences.confidence.ravel()[bins == number].max() for number in range(len(counts))]
    assert all(low > high for low, high in zip(lowest, highest[1:], strict=False))


@pytest.mark.parametrize("sharpness", [1.0, 1.5])
def test_the_correction_takes_away_a_third_of_the_bias_or_more(sharpness: float) -> None:
    data = [overconfident(200, sharpness, seed) for seed in range(100)]
    truth = true_error(sharpness)
    plain = np.mean([plain_error(rows) for rows in data]) - truth
    corrected = np.mean([calibration_error(rows, samples=1, seed=0).value for rows in data]) - truth
    assert plain > 0.01
    assert abs(corrected) < 0.65 * plain


@pytest.mark.parametrize("sharpness", [1.0, 1.5])
def test_the_interval_covers_the_true_error(sharpness: float) -> None:
    truth, covered = true_error(sharpness), 0
    for seed in range(40):
        result = calibration_error(overconfident(400, sharpness, seed), **OPTIONS)
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= truth <= result.high
    assert covered >= 33  # 0.9 of 40 minus 1.6 standard deviations; a percentile interval covers none at sharpness 1


def test_few_rows_have_no_interval() -> None:
    result = calibration_error(overconfident(MIN_INTERVAL_ROWS - 1, 1.5, 0), **OPTIONS)
    assert result.value is not None
    assert (result.low, result.high) == (None, None)
    assert result.note == "99 rows are too few for an interval (at least 100)"


def test_the_pooled_labels_of_label_sets_are_one_set_of_bins() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((300, 4))
    labels = (rng.random((300, 4)) < probabilities).astype(int)
    rows = confidences_of(probabilities, labels)
    assert rows.bins().shape == (300, 4)
    assert calibration_error(rows, **OPTIONS).low == 0
    assert calibration_error(confidences_of(probabilities**3, labels), **OPTIONS).low > 0.1  # type: ignore[operator]


def test_log_loss_and_brier_score_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), 50), rng.integers(4, size=50)
    assert log_losses(probabilities, labels).mean() == pytest.approx(log_loss(labels, probabilities, labels=range(4)))
    expected = brier_score_loss(labels, probabilities, labels=range(4), scale_by_half=False)
    assert brier_scores(probabilities, labels).mean() == pytest.approx(expected)
    single, sets = rng.random((50, 2)), rng.integers(2, size=(50, 2))
    columns = range(2)
    expected_loss = np.mean([log_loss(sets[:, column], single[:, column]) for column in columns])
    assert log_losses(single, sets).mean() == pytest.approx(expected_loss)
    expected = np.mean([brier_score_loss(sets[:, column], single[:, column]) for column in columns])
    assert brier_scores(single, sets).mean() == pytest.approx(expected)


def test_the_area_under_the_risk_coverage_curve_by_hand() -> None:
    def area(confidence: list[float], right: list[int]) -> float:
        rows = Confidences(np.array(confidence)[:, None], np.array(right, dtype=float)[:, None])
        value = risk_coverage_area(rows, samples=2, seed=0).value
        assert value is not None
        return value

    assert area([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert area([0.6, 0.9, 0.7, 0.8], [0, 1, 1, 0]) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # Rows of equal confidence share their errors: 1 wrong row of 2 at each step, then 1 of 3.
    assert area([0.9, 0.9, 0.7], [1, 0, 1]) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_the_interval_of_a_mean_is_that_of_a_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(size=400)
    result = mean_with_interval(values, samples=4000, seed=0)
    half = 1.96 * values.std(ddof=1) / 20
    assert result.value == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - half, abs=0.01)  # percentiles of 4,000 resamples
    assert result.high == pytest.approx(values.mean() + half, abs=0.01)
