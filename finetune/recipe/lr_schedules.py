"""The learning rate schedules, and the parameters that `training.lr_scheduler_kwargs` may set for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class Parameter:
    """A parameter of a schedule: which values it can have, in words and as a function."""

    rule: str
    is_valid: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and float(value) >= 1 and float(value).is_integer()  # type: ignore[arg-type]


_CURVES = ("linear", "cosine", "1-sqrt")
_ABOVE_0 = Parameter("a number above 0", lambda value: _is_number(value) and value > 0)
_COUNT = Parameter("a whole number of at least 1", _is_count)
_RATE = Parameter("a learning rate of at least 0", lambda value: _is_number(value) and value >= 0)
_FRACTION = Parameter("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_STEPS = Parameter(
    "a whole number of steps, or a fraction of all steps between 0 and 1",
    lambda value: _is_count(value) or (_is_number(value) and 0 < value < 1),
)

# The schedules of transformers' `get_scheduler` by name, and those of their parameters that can be set here. The others
# (reduce_lr_on_plateau, greedy) depend on the evaluations.
SCHEDULES: dict[str, dict[str, Parameter]] = {
    "linear": {},
    "cosine": {"num_cycles": _ABOVE_0},
    "cosine_with_restarts": {"num_cycles": _COUNT},
    "polynomial": {"lr_end": _RATE, "power": _ABOVE_0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": _COUNT},
    "cosine_with_min_lr": {"num_cycles": _ABOVE_0, "min_lr": _RATE, "min_lr_rate": _FRACTION},
    "warmup_stable_decay": {
        "num_decay_steps": _STEPS,
        "decay_type": Parameter(f"one of {', '.join(_CURVES)}", lambda value: value in _CURVES),
        "min_lr_ratio": _FRACTION,
        "num_cycles": _ABOVE_0,
    },
}
if TYPE_CHECKING:
    Schedule = str
else:
    Schedule = Literal[tuple(SCHEDULES)]


def lowest_rate_problem(kwargs: Mapping[str, Any], learning_rate: object) -> str:
    """Return the problem with a lowest learning rate that is not below the peak, or "" if it is or the peak is open."""
    for key in ("lr_end", "min_lr"):
        lowest = kwargs.get(key)
        if isinstance(lowest, int | float) and isinstance(learning_rate, int | float) and lowest >= learning_rate > 0:
            return f"{key} is {lowest:g}; it must be below training.learning_rate, {learning_rate:g}"
    return ""
