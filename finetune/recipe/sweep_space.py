"""The search space of a sweep: its parameters, and the recipe keys that a value of a parameter sets."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from finetune.errors import shorten
from finetune.recipe.sweep_schema import Range
from finetune.recipe.validation import Problem

ParameterValue = bool | int | float | str | None
Direction = Literal["maximize", "minimize"]
_RANGE_KEYS = set(Range.model_fields)
_FORMS = "give a list of values, or a range such as {low: 1e-5, high: 1e-3, log: true}"


@dataclass(frozen=True)
class SweepObjective:
    """A value that the sweep optimizes: a validation metric, `train_seconds`, `parameters` or the like."""

    name: str
    direction: Direction


@dataclass(frozen=True)
class SweepParameter:
    """One parameter of the search space.

    Attributes:
        name: a recipe key such as "training.learning_rate", or the name of a choice that sets several keys.
        choices: the values, or the names of the options, in the order of the sweep file; a list or mapping is its YAML
            text. None for a range.
        low: lowest value of a range; None for choices.
        high: highest value of a range; None for choices.
        log: whether the range is sampled on a logarithmic scale.
        step: distance of the values of a range; None: any number, or every whole number if low and high are.
        settings: for choices that are not themselves the value of the recipe key: choice -> the recipe keys that it
            sets.
    """

    name: str
    choices: list[ParameterValue] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    settings: dict[str, dict[str, object]] = field(default_factory=dict)

    def recipe_keys(self, value: ParameterValue) -> dict[str, object]:
        """Return the recipe keys that a value of this parameter sets, with their values."""
        return self.settings.get(value, {self.name: value}) if isinstance(value, str) else {self.name: value}

    def recipe_key_names(self) -> set[str]:
        """Return every recipe key that this parameter can set."""
        return {key for value in self.examples() for key in self.recipe_keys(value)}

    def examples(self) -> list[ParameterValue]:
        """Return the choices, or both ends of the range."""
        if self.choices is not None:
            return list(self.choices)
        return [self.low, self.high]

    def grid(self) -> list[ParameterValue] | None:
        """Return all values, or None for a range in which every number is possible."""
        if self.choices is not None:
            return list(self.choices)
        step = self.step or (1 if self.is_integer() and not self.log else None)
        if step is None:
            return None
        low, distance = Decimal(str(self.low)), Decimal(str(step))
        values = (low + number * distance for number in range(self._count(step)))
        return [int(value) if self.is_integer() else float(value) for value in values]

    def grid_size(self) -> int | None:
        """Return the number of values, without building them; None as in `grid`."""
        if self.choices is not None:
            return len(self.choices)
        step = self.step or (1 if self.is_integer() and not self.log else None)
        return None if step is None else self._count(step)

    def is_integer(self) -> bool:
        """Return whether this is a range of whole numbers."""
        return self.choices is None and not any(isinstance(value, float) for value in (self.low, self.high, self.step))

    def _count(self, step: float) -> int:
        assert self.low is not None
        assert self.high is not None
        return 1 + round((self.high - self.low) / step)


def combinations(parameters: Iterable[SweepParameter]) -> Iterator[dict[str, ParameterValue]]:
    """Yield every combination of values; the last parameter varies fastest."""
    parameters = list(parameters)
    for values in itertools.product(*(parameter.grid() or () for parameter in parameters)):
        yield {parameter.name: value for parameter, value in zip(parameters, values, strict=True)}


def one_at_a_time(parameters: Iterable[SweepParameter]) -> Iterator[tuple[str, dict[str, ParameterValue]]]:
    """Yield ("", the first value of every parameter), then the name of a parameter with another value of it."""
    parameters = list(parameters)
    first = {parameter.name: parameter.examples()[0] for parameter in parameters}
    yield "", first
    for parameter in parameters:
        for value in parameter.examples()[1:]:
            yield parameter.name, {**first, parameter.name: value}


def settings_of(parameters: Iterable[SweepParameter], values: Mapping[str, ParameterValue]) -> dict[str, object]:
    """Return the recipe keys that the values of all parameters set."""
    return {key: value for each in parameters for key, value in each.recipe_keys(values[each.name]).items()}


def as_overrides(settings: Mapping[str, object]) -> list[str]:
    """Return recipe keys and their values as `section.key=value`."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def flatten(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return settings with `section: {key: value}` written as `section.key: value`."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value and "." not in key:
            flat |= {f"{key}.{inner}": content for inner, content in value.items()}
        else:
            flat[key] = value
    return flat


def overlap(key: str, others: Iterable[str]) -> str | None:
    """Return the key among `others` that sets the same value: the key itself, its section, or a key inside it."""
    return next(
        (other for other in others if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}.")), None
    )


def read_space(space: Mapping[str, object]) -> tuple[list[SweepParameter], list[Problem]]:
    """Return the parameters of a sweep file's `space`, and its mistakes."""
    parameters: list[SweepParameter] = []
    problems: list[Problem] = []
    if not space:
        problems.append(Problem(("space",), f"is empty; name a recipe key, and {_FORMS}"))
    for name, content in space.items():
        location = ("space", name)
        try:
            parameter = _read_parameter(name, content)
        except ValidationError as error:
            problems += [_range_problem(location, item) for item in error.errors(include_url=False)]
        except ValueError as error:
            problems.append(Problem(location, str(error)))
        else:
            parameters.append(parameter)
    return parameters, problems


def _range_problem(location: tuple[str, ...], item: Any) -> Problem:
    if item["type"] == "value_error":
        return Problem(location, str(item["ctx"]["error"]))
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return Problem((*location, name), f"unknown key of a range; it has {', '.join(Range.model_fields)}")
    if item["type"] == "missing":
        return Problem((*location, name), "is missing; a range needs low and high")
    rule = "true or false" if item["type"].startswith("bool") else "a number"
    return Problem((*location, name), f"given {shorten(repr(item['input']), 80)}; must be {rule}")


def _read_parameter(name: str, content: object) -> SweepParameter:
    """Return one parameter; ValueError if it is not a list, a range, or options."""
    if isinstance(content, list):
        return _choices(name, content)
    if not isinstance(content, dict):
        raise ValueError(f"given {shorten(repr(content), 80)}; {_FORMS}")
    if not content:
        raise ValueError(f"is empty; {_FORMS}")
    if "." in name or content.keys() & _RANGE_KEYS:
        limits = Range.model_validate(content)
        return SweepParameter(name, low=limits.low, high=limits.high, log=limits.log, step=limits.step)
    return _named_choice(name, content)


def _choices(name: str, values: list[object]) -> SweepParameter:
    if not values:
        raise ValueError("has no values; list at least one")
    labels: list[ParameterValue] = []
    settings: dict[str, dict[str, object]] = {}
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"lists {value}; every value must be finite")
        label = value if isinstance(value, bool | int | float | str) or value is None else _flow(value)
        if label in labels:
            raise ValueError(f"lists {label} twice (true equals 1, and false 0); list each value once")
        labels.append(label)
        if label is not value:
            settings[str(label)] = {name: value}
    return SweepParameter(name, labels, settings=settings)


def _named_choice(name: str, options: Mapping[str, object]) -> SweepParameter:
    settings = {}
    for option, keys in options.items():
        if not isinstance(keys, dict):
            raise ValueError(
                f"option {option}: given {shorten(repr(keys), 80)}; must be a mapping of recipe keys, such as "
                "{training.learning_rate: 1e-4}"
            )
        settings[option] = flatten(keys)
        for key in settings[option]:
            if other := overlap(key, (other for other in settings[option] if other != key)):
                raise ValueError(f"option {option} sets both {key} and {other}; remove one of them")
    if not any(settings.values()):
        raise ValueError("no option sets a recipe key; give at least one option a key")
    return SweepParameter(name, list(settings), settings=settings)


def _flow(value: object) -> str:
    """Return a list or mapping as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.strip()
