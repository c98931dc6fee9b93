from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune.recipe.sweep_schema import Range, Sweep

SWEEP: dict[str, Any] = {"recipe": "recipe:toy", "output_dir": "x", "trials": 3, "space": {"seed": [1, 2]}}


def test_the_defaults_are_one_seed_per_trial_no_pruning_and_no_test_rows() -> None:
    sweep = Sweep.model_validate(SWEEP)
    assert (sweep.seeds, sweep.pruner, sweep.sampler, sweep.score_test_rows) == (None, "none", "tpe", False)
    assert Sweep.model_validate(SWEEP | {"trials": None, "sampler": "grid"}).trials is None
    assert Sweep.model_validate(SWEEP | {"trials": None, "timeout_minutes": 1.5}).timeout_minutes == 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": None}, "sampler tpe never ends by itself; set trials or timeout_minutes"),
        ({"seeds": [1, 1]}, "seeds are 1, 1; list each seed once"),
        ({"objectives": [{"name": "loss"}, {"name": "loss"}]}, "objectives are loss, loss; list each objective once"),
        (
            {"pruner": "median", "objectives": [{"name": "accuracy"}, {"name": "parameters"}]},
            "pruner median needs a single objective, given 2; set pruner: none",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sweep.model_validate(SWEEP | changes)


@pytest.mark.parametrize(
    ("values", "is_integer"),
    [({"low": 1, "high": 8}, True), ({"low": 1, "high": 8, "step": 0.5}, False), ({"low": 0.1, "high": 1}, False)],
)
def test_a_range_of_whole_numbers_has_only_whole_numbers(values: dict[str, float], is_integer: bool) -> None:
    assert Range.model_validate(values).is_integer() is is_integer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 2, "high": 2}, "low is 2 and high is 2; low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "low is 0; with log: true it must be above 0"),
        ({"low": 1, "high": 3, "log": True, "step": 1}, "log and step are both given; remove one"),
        ({"low": 1, "high": 3, "step": 4}, "step is 4; it must be above 0 and at most high - low = 2"),
        ({"low": 1, "high": 3, "step": 0}, "step is 0; it must be above 0"),
    ],
)
def test_a_range_that_is_empty_or_ambiguous_is_rejected(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range.model_validate(values)
