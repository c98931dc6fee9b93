from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluation.temperature import MIN_ROWS, best_temperature, fit_temperature
from finetune.models.outputs import OutputRules

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NAMES = ("a", "b", "c")


def simulated(rows: int, temperature: float, problem_type: str = SINGLE) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, 3) in float32 that are calibrated at a temperature, and labels."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(rows, 3)) * 3 * temperature).astype(np.float32)
    probabilities = OutputRules(NAMES, problem_type, temperature=temperature).probabilities(logits)
    if problem_type == MULTI:
        return logits, (rng.random((rows, 3)) < probabilities).astype(int)
    return logits, (rng.random((rows, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_logits_is_recovered(temperature: float, problem_type: str) -> None:
    logits, labels = simulated(4000, temperature, problem_type)
    # One standard deviation of the fit over data sets is 0.02, as a share of the temperature.
    assert best_temperature(OutputRules(NAMES, problem_type), logits, labels) == pytest.approx(temperature, rel=0.06)


def test_rows_without_a_wrong_prediction_do_not_make_the_probabilities_extreme() -> None:
    logits, _ = simulated(200, 1.0)
    assert 0.1 < best_temperature(OutputRules(NAMES, SINGLE), logits, logits.argmax(axis=1)) < 1


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_a_temperature_that_helps_is_applied(problem_type: str) -> None:
    logits, labels = simulated(400, 3.0, problem_type)
    rules = OutputRules(NAMES, problem_type)
    fit = fit_temperature(rules, logits, labels, samples=200, seed=1)
    assert (fit.applied, fit.reason, fit.rows) == (True, "", 400)
    assert fit.value == best_temperature(rules, logits, labels)
    assert fit.before is not None
    assert fit.after is not None
    assert fit.decrease is not None
    assert fit.decrease.low is not None
    assert fit.decrease.low > 0
    for name in ("log_loss", "calibration_error", "brier"):
        assert getattr(fit.after, name).value < getattr(fit.before, name).value, name
    assert fit.text().startswith(f"Temperature {fit.value:.3g}: log loss ")
    assert f" (lower by {fit.decrease.value:.3f} {fit.decrease.interval()}), calibration error" in fit.text()
    assert fit.text().endswith("on held-out folds of 400 validation rows.")


def test_a_temperature_that_does_not_help_is_not_applied() -> None:
    logits, labels = simulated(150, 1.0)
    fit = fit_temperature(OutputRules(NAMES, SINGLE), logits, labels, samples=50, seed=1)
    assert fit.decrease is not None
    assert fit.decrease.value is not None
    assert fit.decrease.value <= 0
    assert not fit.applied
    assert ", not applied because the log loss on held-out folds is not lower: log loss 0." in fit.text()


def test_few_rows_fit_no_temperature() -> None:
    logits, labels = simulated(MIN_ROWS - 1, 3.0)
    fit = fit_temperature(OutputRules(NAMES, SINGLE), logits, labels, samples=50, seed=1)
    assert (fit.applied, fit.value) == (False, 1.0)
    assert fit.text() == "Temperature: not fitted; 99 validation rows are too few (100 needed)."


@pytest.mark.parametrize("temperature", [0.05, 0.37, 1.7, 20.0])
def test_a_temperature_changes_no_decision(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(5000, 20)) * rng.choice([1e-3, 1, 30], size=(5000, 1))).astype(np.float32)
    logits[:50, 0] = np.nextafter(logits[:50].max(axis=1), np.float32(np.inf))  # as close as float32 can hold
    logits[50:60] = 0
    for problem_type in (SINGLE, MULTI):
        rules = OutputRules(tuple(map(str, range(20))), problem_type)
        scaled = OutputRules(rules.label_names, problem_type, temperature=temperature)
        before, after = (each.decisions(each.probabilities(logits)) for each in (rules, scaled))
        np.testing.assert_array_equal(after, before)
        assert not np.allclose(scaled.probabilities(logits), rules.probabilities(logits))
