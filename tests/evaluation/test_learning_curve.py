"""Warnings about the course of training: finetune/evaluation/learning_curve.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from finetune.evaluation.learning_curve import learning_curve_warnings

FALLING = r"^The validation loss was still falling when training ended: from {} at step {} to {} at step {}, {} % of"


def warnings(
    losses: Sequence[float],
    values: Sequence[float | None] = (),
    *,
    metric: str = "accuracy",
    constant: float | None = 0.5,
    finished: bool = True,
) -> list[str]:
    """Return the warnings about evaluations every 10 steps with these losses and metrics."""
    values = values or [0.5 + 0.01 * number for number in range(len(losses))]
    history: list[dict[str, int | float | None]] = [{"step": 5, "loss": 1.0}]
    for number, (loss, value) in enumerate(zip(losses, values, strict=True), start=1):
        history.append({"step": 10 * number, "eval_loss": loss, f"eval_{metric}": value})
    return learning_curve_warnings(history, metric, constant_score=constant, all_steps_done=finished)


@pytest.mark.parametrize(
    ("losses", "pattern"),
    [
        ([1.0, 0.8, 0.6], FALLING.format("0.8000", 20, "0.6000", 30, 50)),
        ([1.0, 0.9, 0.8, 0.7], FALLING.format("0.8000", 30, "0.7000", 40, 33)),
        ([1.0, 0.9, 0.8, 0.75, 0.7, 0.65, 0.6], FALLING.format("0.7000", 50, "0.6000", 70, 25)),
        ([0.6, 0.7, 0.5], FALLING.format("0.7000", 20, "0.5000", 30, 100)),
        ([1.0, 0.5, 0.45], None),  # an eleventh of the fall
        ([1.0, 0.6, 0.7, 0.5, 0.55, 0.52], None),  # not the lowest loss
        ([1.0, 0.998, 0.996], None),  # less than 1 % of the loss
        ([0.5, 0.7, 0.5], None),  # not below the first loss
        ([1.0, 0.5], None),
        ([], None),
    ],
)
def test_a_loss_that_still_falls_is_reported(losses: Sequence[float], pattern: str | None) -> None:
    reported = warnings(losses)
    assert len(reported) == (pattern is not None)
    if pattern is not None:
        (warning,) = reported
        assert re.search(pattern, warning), warning
        assert warning.endswith("Raise training.num_train_epochs (or max_steps) or training.learning_rate.")
    assert warnings(losses, finished=False) == []


def test_a_falling_loss_is_not_reported_if_the_metric_is_perfect() -> None:
    assert len(warnings([1.0, 0.8, 0.6], [0.9, 0.9, 0.99])) == 1
    assert warnings([1.0, 0.8, 0.6], [0.9, 1.0, 1.0]) == []
    assert warnings([1.0, 0.8, 0.6], [1.0, 1.0, 0.9], metric="mean_squared_error") != []


@pytest.mark.parametrize(
    ("values", "metric", "constant", "shown"),
    [
        ([0.75, 0.75], "accuracy", 0.5, "0.750"),  # the loss does not change either
        ([0.5, 0.5], "accuracy", 0.5, "0.500"),
        ([0.2, 0.2, 0.2], "accuracy", 0.5, "0.200"),
        ([0.0, 0.0, 0.0], "f1_micro", None, "0.000"),
        ([None, None], "pearson", None, "undefined"),
        ([1.0, 1.0], "f1_micro", None, None),
        ([0.0, 0.0], "mean_squared_error", None, None),
        ([0.5, 0.5, 0.6], "accuracy", 0.5, None),
        ([None, 0.0], "pearson", None, None),
        ([0.5], "accuracy", 0.5, None),
        ([], "accuracy", 0.5, None),
    ],
)
def test_a_metric_that_never_changes_is_reported(
    values: Sequence[float | None], metric: str, constant: float | None, shown: str | None
) -> None:
    reported = warnings([1.0] * len(values), values, metric=metric, constant=constant)
    assert len(reported) == (shown is not None)
    if shown is not None:
        follows = "the weights with the lowest loss" if shown == "undefined" else "training did not improve"
        expected = f"{metric} was {shown} in all {len(values)} evaluations during training, so {follows}"
        assert reported[0].startswith(expected)


def test_a_model_above_a_constant_prediction_with_a_changing_loss_is_not_reported() -> None:
    assert warnings([1.0, 0.9], [0.75, 0.75]) == []
    assert len(warnings([1.0, 0.9], [0.5, 0.5])) == 1


def test_a_loss_that_selects_the_model_is_no_metric_that_stands_still() -> None:
    history = [{"step": step, "eval_loss": 1.0 / step} for step in (1, 2)]
    assert learning_curve_warnings(history, "loss", constant_score=None, all_steps_done=True) == []
