from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.heads.rank_correlation import kendall_tau
from finetune.heads.ranking_statistics import against_importance
from finetune.runs.head_results import HeadChanges, TauValue

VALUES = st.lists(st.integers(0, 6) | st.none(), min_size=12, max_size=12)


def table(values: list[float | None] | np.ndarray, width: int = 4) -> list[list[float | None]]:
    return [list(values[start : start + width]) for start in range(0, len(values), width)]


def tau_by_hand(first: list[float], second: list[float]) -> float | None:
    """Return tau-b from its definition: concordant minus discordant pairs, divided by the pairs without ties."""
    agreement, untied = 0, [0, 0]
    for i in range(len(first)):
        for j in range(i):
            signs = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
            agreement += int(signs[0] * signs[1])
            untied = [count + int(sign != 0) for count, sign in zip(untied, signs, strict=True)]
    return agreement / float(np.sqrt(untied[0] * untied[1])) if all(untied) else None


@given(first=VALUES, second=VALUES)
def test_tau_and_jackknife_from_their_definitions(first: list[float | None], second: list[float | None]) -> None:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    expected = tau_by_hand([a for a, _ in pairs], [b for _, b in pairs])
    result = kendall_tau(table(first), table(second))
    if expected is None:
        assert result == TauValue(None)
        return
    assert result.value == pytest.approx(expected, abs=1e-12)
    jackknife_samples = [pairs[:i] + pairs[i + 1 :] for i in range(len(pairs))]
    without = [tau_by_hand([a for a, _ in sample], [b for _, b in sample]) for sample in jackknife_samples]
    if len(pairs) < 3 or None in without:
        assert (result.low, result.high) == (None, None)
        return
    n, mean = len(without), sum(without) / len(without)
    error = ((n - 1) / n * sum((tau - mean) ** 2 for tau in without)) ** 0.5
    assert result.low == pytest.approx(max(-1, expected - 1.96 * error), abs=1e-4)
    assert result.high == pytest.approx(min(1, expected + 1.96 * error), abs=1e-4)


def test_the_interval_contains_the_true_tau_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    true, covered, trials = 2 / np.pi * np.arcsin(0.6), 0, 60  # of a bivariate normal distribution with correlation 0.6
    for _ in range(trials):
        x, noise = rng.normal(size=(2, 36))
        result = kendall_tau(table(x), table(0.6 * x + 0.8 * noise))
        assert result.low is not None
        assert result.high is not None
        covered += result.low < true < result.high
    assert covered >= 54  # measured 57 of 60


def test_tables_of_different_heads_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[3\] cells per layer; they must be tables of the same heads"):
        kendall_tau([[1.0, 2.0]], [[1.0, 2.0, 3.0]])


def test_tau_is_undefined_without_an_order() -> None:
    assert kendall_tau([[1.0, 1.0, 1.0]], [[1.0, 2.0, 3.0]]).text() == "undefined"
    assert kendall_tau([[None, 2.0]], [[1.0, 2.0]]) == TauValue(None)
    assert kendall_tau([[1.0, 2.0]], [[1.0, 2.0]]) == TauValue(1.0)
    assert kendall_tau([[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]).text() == "1.00 [1.00, 1.00]"


@pytest.mark.parametrize(
    ("signs", "beginning"),
    [
        ((1, 1, 1), "Yes, training changed the important heads more"),
        (
            (1, 0, 1),
            "In part: important heads changed more by output-value product and effect, but not by query-key product",
        ),
        ((-1, 0, 0), "No, the reverse: important heads changed less by output-value product"),
        ((1, -1, 0), "Mixed: important heads changed more by output-value product, less by query-key product"),
        ((0, 0, 0), "No relation was found"),
        ((None, None, None), "There is no order to compare"),
    ],
)
def test_the_answer_follows_from_the_intervals(signs: tuple[int | None, ...], beginning: str) -> None:
    rng = np.random.default_rng(1)
    importance = rng.permutation(24.0 + np.arange(24))
    unrelated = np.tile([1.0, 4.0, 2.0, 3.0], 6)[np.argsort(np.argsort(importance))]
    changed = [
        table(np.ones(24) if sign is None else unrelated if sign == 0 else sign * importance + rng.normal(size=24))
        for sign in signs
    ]
    missing = table([None] * 24)
    changes = HeadChanges(
        "validation", 4, "KL", changed[0], changed[1], missing, missing, changed[2], missing, missing, missing
    )
    result = against_importance(changes, table(importance), "gradient")
    assert result.answer.startswith(beginning)
    assert result.importance == "gradient"
    assert [tau.value is None for tau in (result.output_value, result.query_key, result.effect)] == [
        sign is None for sign in signs
    ]


def test_an_effect_that_was_not_measured_is_ignored() -> None:
    table = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    missing: list[list[float | None]] = [[None] * 4] * 2
    changes = HeadChanges("train", 0, "KL", table, table, table, table, missing, missing, missing, missing)
    result = against_importance(changes, table, "gradient")
    assert result.answer.startswith("Yes, training changed the important heads more")
    assert "effect" not in result.answer
