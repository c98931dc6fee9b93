from __future__ import annotations

import pytest

from finetune.training.state import TrainState

Evaluations = list[tuple[float | None, float]]  # metric, loss


@pytest.mark.parametrize(
    ("evaluations", "best_step", "since_best"),
    [
        ([(0.5, 1.0), (0.7, 1.2), (0.6, 0.1)], 2, 1),
        ([(0.7, 1.0), (0.7, 0.8), (0.7, 0.9)], 2, 1),  # of equal metrics, the one with the lower loss is better
        ([(0.4, 0.472), (0.4, 0.286), (0.3, 0.1)], 2, 1),
        ([(0.4, 0.286), (0.4, 0.472)], 1, 1),
        ([(0.0, 3.0), (0.0, 2.0), (0.0, 1.0)], 3, 0),  # still learning, so training does not stop early
        ([(0.7, 1.0), (0.7, 1.0)], 1, 1),
        ([(None, 1.0), (None, 0.8), (None, 0.9)], 2, 1),  # undefined: only the loss decides
        ([(None, 0.1), (-0.2, 1.0), (None, 0.01)], 2, 1),  # any value is better than undefined
        ([(None, 0.1)], 1, 0),
    ],
)
def test_the_best_evaluation(evaluations: Evaluations, best_step: int, since_best: int) -> None:
    state = TrainState()
    for step, (value, loss) in enumerate(evaluations, start=1):
        state.step = step
        assert state.record_evaluation(value, loss=loss, lower_is_better=False) == (state.best_step == step)
    assert (state.best_step, state.evaluations_since_best) == (best_step, since_best)
    assert (state.best_value, state.best_loss) == evaluations[best_step - 1]


@pytest.mark.parametrize(
    ("values", "best_step", "since_best"),
    [
        ([0.82, 0.80, 0.78], 3, 0),  # all within 0.05 of the highest value
        ([0.82, 0.78, 0.76], 2, 1),  # the distance counts from the highest value, not from the one kept last
        ([0.70, 0.82, 0.90, 0.84], 3, 1),
        ([0.90, 0.84, 0.87], 3, 0),
    ],
)
def test_a_later_evaluation_within_the_tolerance_is_better(
    values: list[float], best_step: int, since_best: int
) -> None:
    state = TrainState()
    for state.step, value in enumerate(values, start=1):
        state.record_evaluation(value, loss=float(state.step), lower_is_better=False, tolerance=0.05)
    assert (state.best_step, state.evaluations_since_best) == (best_step, since_best)
    assert (state.best_value, state.peak_value) == (values[best_step - 1], max(values))


def test_lower_is_better_for_errors() -> None:
    state = TrainState()
    best = []
    for state.step, value in enumerate([0.5, 0.6, 0.4, None], start=1):
        best.append(state.record_evaluation(value, loss=1.0, lower_is_better=True))
    assert best == [True, False, True, False]


def test_the_keys_of_a_stored_state_do_not_change() -> None:
    state = TrainState(step=3, best_value=0.5, weight_decay_factor=0.25)
    stored = state.to_json()
    assert TrainState.from_json(stored) == state
    assert stored["undecayed"] == 0.25
    assert list(stored) == [
        "step", "epoch", "step_in_epoch", "best_step", "best_value", "best_loss", "peak_value",
        "evaluations_since_best", "micro_batch_rows", "undecayed", "train_seconds", "eval_seconds", "rows_seen",
        "tokens_seen", "padded_seen", "rows_evaluated", "logged_seconds", "logged_rows",
    ]  # fmt: skip
