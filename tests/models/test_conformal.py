"""Prediction sets: the quantile, the coverage that is promised, few rows, the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.errors import DataError, ModelError
from finetune.models.conformal import (
    FILE,
    MAX_ROWS,
    ConformalScores,
    Limits,
    conformal_scores,
    read_conformal,
    rows_needed,
    scope_scores,
    write_conformal,
)
from finetune.models.outputs import OutputRules

NAMES = ("a", "b", "c")


RULES = OutputRules(NAMES, "single_label_classification", temperature=0.5)


def simulated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, 3), whose probabilities are too extreme, of labels (N,) with unequal shares."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(rows, 3)) * 2 + 2.5 * np.eye(3)[labels] - np.array([0, 0, 1.5])
    return logits, labels


def scores_of(logits: np.ndarray, labels: np.ndarray) -> ConformalScores:
    scores = RULES.with_scores_of(logits, labels, seed=0).conformal
    assert scores is not None
    return scores


def sets_of(limits: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    sets = Limits(limits).label_sets(probabilities)
    assert sets is not None
    return sets


@pytest.mark.parametrize("rows", [9, 19, 20, 99, 100])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_limit_is_the_smallest_score_that_covers_enough_rows(rows: int, coverage: float) -> None:
    """By definition: of n + 1 exchangeable rows, the new one is among the k smallest with chance k / (n + 1)."""
    values = tuple(float(value) for value in range(1, rows + 1))
    ranks = [rank for rank in range(1, rows + 1) if rank / (rows + 1) >= coverage - 1e-12]
    scores = ConformalScores((values[::2], values[1::2]))
    if ranks:
        assert scores.limit(coverage) == values[ranks[0] - 1]
        assert rows >= rows_needed(coverage)
    else:
        assert rows < rows_needed(coverage)
        with pytest.raises(DataError, match=rf"coverage of {coverage:g} needs at least {rows_needed(coverage)} "):
            scores.limit(coverage)


def test_the_sets_cover_as_often_as_promised() -> None:
    covered, per_label, in_scope = [], [], []
    for seed in range(60):
        logits, labels = simulated(1200, seed)
        scores = scores_of(logits[:600], labels[:600])
        test, truth = RULES.probabilities(logits[600:]), labels[600:]
        sets = sets_of(np.full(3, scores.limit(0.9)), test)
        covered.append(sets[np.arange(600), truth].mean())
        sets = sets_of(scores.limits_per_label(0.8, NAMES), test)
        right = sets[np.arange(600), truth]
        per_label.append([right[truth == label].mean() for label in range(3)])
        inside = Limits(scope=scores.scope_limit(0.95)).in_scope(logits[600:])
        assert inside is not None
        in_scope.append(inside.mean())
    # Standard errors of the means over 60 data sets: 0.002 for all rows, 0.003 to 0.009 per label, 0.002 for the scope.
    assert np.mean(covered) == pytest.approx(0.9, abs=0.006)
    assert np.mean(per_label, axis=0) == pytest.approx([0.8, 0.8, 0.8], abs=0.027)
    assert np.mean(in_scope) == pytest.approx(0.95, abs=0.006)


def test_the_coverage_of_all_rows_hides_a_rare_label() -> None:
    logits, labels = simulated(20_000, 1)
    scores = scores_of(logits[:10_000], labels[:10_000])
    sets = sets_of(np.full(3, scores.limit(0.8)), RULES.probabilities(logits[10_000:]))
    rare = labels[10_000:] == 2
    assert sets[rare, 2].mean() < 0.75


def test_intervals_of_a_regression_cover_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    values, truth = rng.normal(size=(40_000, 1)), rng.normal(size=40_000)
    scores = conformal_scores(values[:10_000], np.empty(10_000), truth[:10_000], seed=0)
    assert scores.scope == ()
    inside = np.abs(values[10_000:, 0] - truth[10_000:]) <= scores.limit(0.9)
    assert inside.mean() == pytest.approx(0.9, abs=0.009)  # three standard deviations over validation and test rows


def test_scores_at_the_limit_are_within_it() -> None:
    """Probabilities near 1 have few different values, so many rows have the same score as the limit."""
    probabilities = np.array([[1 - 2.0**-52, 2.0**-52], [1 - 1 / 3, 1 / 3]]).repeat(10, axis=0)
    scope = np.repeat([-7 / 3, 7 / 3], 10)
    scores = conformal_scores(probabilities, scope, np.zeros(20, dtype=int), seed=0)
    for coverage in (0.2, 0.9):
        covered = sets_of(np.full(2, scores.limit(coverage)), probabilities)[:, 0]
        assert covered.mean() == (0.5 if coverage == 0.2 else 1.0)
    assert scores.scope_limit(0.9) <= -7 / 3
    assert scores.scope_limit(0.4) <= 7 / 3


def test_the_scope_score_is_the_log_of_the_sum_of_exponentials() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [-1.0, -1.0, -1.0], [1000.0, 0.0, 0.0]], np.float32)
    expected = [np.log(np.exp([1, 2, 3]).sum()), np.log(3) - 1, 1000]
    assert scope_scores(logits) == pytest.approx(expected)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 90.0, float("nan")])
def test_a_coverage_outside_its_range_is_an_error(coverage: float) -> None:
    with pytest.raises(DataError, match=f"a coverage of {coverage:g} cannot be promised; .* between 0 and 1"):
        ConformalScores(((0.1,) * 50,)).limit(coverage)


def test_the_message_names_the_label_with_the_fewest_rows() -> None:
    scores = ConformalScores(((0.1,) * 50, (0.2,) * 12, (0.3,) * 11))
    assert scores.limits_per_label(0.9, NAMES).tolist() == [0.1, 0.2, 0.3]
    message = (
        r"coverage of 0.95 needs at least 19 validation rows with the label 'c', and the model has 11; set at most "
        r"0.916, or leave out the coverage per class, or train with more validation rows"
    )
    with pytest.raises(DataError, match=message):
        scores.limits_per_label(0.95, NAMES)
    scores.limits_per_label(0.916, NAMES)  # what the message suggests works
    with pytest.raises(DataError, match="the label 'b', and the model has 0; leave out the coverage per class, or"):
        ConformalScores(((0.1,) * 50, (), (0.3,) * 50)).limits_per_label(0.5, NAMES)


def test_many_rows_are_sampled() -> None:
    logits, labels = simulated(MAX_ROWS + 5000, 0)
    scores = scores_of(logits, labels)
    assert len(scores.scope) == sum(map(len, scores.errors)) == MAX_ROWS
    assert scores == scores_of(logits, labels)
    shares = np.array([len(part) for part in scores.errors]) / MAX_ROWS
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.015)


def test_the_file_keeps_the_scores(tmp_path: Path) -> None:
    assert read_conformal(tmp_path, 3) is None
    scores = scores_of(*simulated(500, 0))
    write_conformal(scores, tmp_path)
    assert read_conformal(tmp_path, 3) == scores
    assert (tmp_path / FILE).stat().st_size < 25 * 1000  # two scores per row


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError"),
        ('{"errors": [[0.1], [0.2], [0.3]]}', "KeyError: 'scope'"),
        ('{"errors": [[0.1], [0.2]], "scope": []}', "scores of 2 labels, and the model has 3"),
        ('{"errors": [[0.1], [0.3, 0.2], []], "scope": []}', "not in ascending order"),
        ('{"errors": [[0.1], ["0.2"], []], "scope": []}', "a score is not a number"),
        ('{"errors": [[0.1], [NaN], []], "scope": []}', "a score is not a number"),
        ('{"errors": [[0.1], 2, []], "scope": []}', "TypeError"),
    ],
)
def test_a_damaged_file_is_an_error(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ModelError, match=f"{FILE} is damaged .*{reason}.*; copy it from the run again, or remove it"):
        read_conformal(tmp_path, 3)
    (tmp_path / FILE).write_text(json.dumps({"errors": [[0.1], [], []], "scope": [1]}))
    assert read_conformal(tmp_path, 3) == ConformalScores(((0.1,), (), ()), (1.0,))
