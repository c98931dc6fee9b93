"""Checks of a sweep against its recipe: every value of the space is validated as part of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from finetune.errors import RecipeError, did_you_mean
from finetune.recipe.loader import problems_message, validate_recipe
from finetune.recipe.named_metrics import lower_is_better
from finetune.recipe.schema import Recipe
from finetune.recipe.shipped import recipe_file
from finetune.recipe.sweep_schema import Sweep
from finetune.recipe.sweep_space import (
    Direction,
    SweepObjective,
    SweepParameter,
    as_overrides,
    flatten,
    one_at_a_time,
    overlap,
    settings_of,
)
from finetune.recipe.validation import NO_VALIDATION, Problem
from finetune.recipe.yaml_parser import Location

COSTS = ("train_seconds", "parameters", "trainable_parameters")  # objectives that are no metric; lower is better
# Keys that a sweep sets itself.
_RESERVED = {
    "output_dir": "each trial gets a folder in the output_dir of the sweep",
    "overwrite_output_dir": "a sweep repeats no finished trial, and replaces none",
    "checkpoint.resume_from_checkpoint": "a trial that was interrupted is always resumed",
    "seeds": "use the key seeds of the sweep file",
}
# What decides which rows are held out. It must be the same in all trials.
_VALIDATION_KEYS = (
    "dataset_name", "dataset_config_name", "validation_split", "validation_file", "validation_rows", "validation_size",
    "max_eval_samples",
)  # fmt: skip
_TRAINING_KEYS = ("train_file", "train_rows", "train_split")  # decide it too if training rows are held out


def key_problems(sweep: Sweep, parameters: Sequence[SweepParameter], overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield keys that a sweep sets itself, and keys that are set twice.

    Args:
        overrides: those of the command line, as `section.key=value`.
    """
    fixed: dict[str, Location] = dict.fromkeys(flatten(sweep.overrides), ("overrides",))
    fixed |= {override.partition("=")[0].strip(): ("override",) for override in overrides}
    keys: list[tuple[Location, str]] = [(location, key) for key, location in fixed.items()]
    keys += [
        (("space", parameter.name), key) for parameter in parameters for key in sorted(parameter.recipe_key_names())
    ]
    for location, key in keys:
        if reserved := overlap(key, _RESERVED):
            yield Problem(location, f"{reserved} cannot be set: {_RESERVED[reserved]}; remove it")
    for parameter in parameters:
        for key in sorted(parameter.recipe_key_names()):
            if other := overlap(key, fixed):
                text = f"{key} varies, but {other} is also set by an override; remove one of the two"
                yield Problem(("space", parameter.name), text)
    for first, second in combinations(parameters, 2):
        for key in sorted(second.recipe_key_names()):
            if other := overlap(key, first.recipe_key_names()):
                yield Problem(("space", second.name), f"sets {key}, and {first.name} sets {other}; keep one of the two")


def candidate_problems(
    sweep: Sweep, parameters: Sequence[SweepParameter], overrides: Sequence[str]
) -> tuple[Recipe | None, list[SweepObjective], list[Problem]]:
    """Return the recipe with the first value of every parameter, the objectives, and the mistakes in all values.

    Args:
        overrides: of the sweep file and of the command line, as `section.key=value`.

    Raises:
        RecipeError: the recipe has mistakes that do not depend on the sweep.
    """
    (_, first), *others = one_at_a_time(parameters)
    file = recipe_file(sweep.recipe)
    example, mistakes, _ = validate_recipe(file, [*overrides, *as_overrides(settings_of(parameters, first))])
    problems = _in_sweep(mistakes, sweep, parameters, ("space",))
    if len(problems) < len(mistakes) or any(problem.location == ("space",) for problem in problems):
        _, in_base, base_lines = validate_recipe(file, overrides)
        if not {mistake.location for mistake in mistakes}.isdisjoint(mistake.location for mistake in in_base):
            raise RecipeError(problems_message(file, in_base, base_lines))
    objectives: list[SweepObjective] = []
    if example is not None:
        objectives, mistakes = objectives_of(sweep, example)
        problems += [*mistakes, *_row_problems(sweep, example)]
    for parameter, values in others:
        location = ("space", parameter)
        recipe, mistakes, _ = validate_recipe(file, [*overrides, *as_overrides(settings_of(parameters, values))])
        if example is not None or recipe is None:
            problems += _in_sweep(mistakes, sweep, parameters, location)
        if example is not None and recipe is not None:
            problems += [Problem(location, text) for text in _difference_problems(recipe, example, objectives)]
    return example, objectives, list(dict.fromkeys(problems))


def _in_sweep(
    mistakes: Sequence[Problem], sweep: Sweep, parameters: Sequence[SweepParameter], otherwise: Location
) -> list[Problem]:
    """Return mistakes of a candidate recipe with their location in the sweep file.

    Args:
        otherwise: the location of mistakes at keys that neither the space nor the overrides set.
    """
    owners: dict[str, Location] = dict.fromkeys(flatten(sweep.overrides), ("overrides",))
    owners |= {key: ("overrides", key) for key in sweep.overrides}
    owners |= {key: ("space", parameter.name) for parameter in parameters for key in parameter.recipe_key_names()}
    problems = []
    for mistake in mistakes:
        path = ".".join(map(str, mistake.location))
        owner = next((key for key in owners if f"{path}.".startswith(f"{key}.")), None)
        location = otherwise if owner is None else owners[owner]
        prefix = "" if location[-1] == path else f"{path}: "
        problems.append(Problem(location, f"{prefix}{mistake.text}"))
    return problems


def objectives_of(sweep: Sweep, recipe: Recipe) -> tuple[list[SweepObjective], list[Problem]]:
    """Return what the sweep optimizes, and its mistakes."""
    if sweep.objectives is None:
        name = recipe.best_metric()
        return [SweepObjective(name, _direction(name))], []
    known = (*recipe.metric_names(), "loss", *COSTS)
    objectives, problems = [], []
    for index, objective in enumerate(sweep.objectives):
        location = ("objectives", index, "name")
        if objective.name not in known:
            hint = did_you_mean(objective.name, known)
            text = f"given '{objective.name}'; must be one of {', '.join(known)}{hint}"
            problems.append(Problem(location, f"{text}, or a metric that you add to evaluation.metrics"))
        elif objective.name in COSTS and sweep.pruner != "none":
            text = f"{objective.name} is known only after training, so pruner {sweep.pruner} has nothing to compare"
            problems.append(Problem(location, f"{text}; set pruner: none, or name a metric"))
        objectives.append(SweepObjective(objective.name, objective.direction or _direction(objective.name)))
    return objectives, problems


def _direction(name: str) -> Direction:
    return "minimize" if lower_is_better(name) or name in COSTS else "maximize"


def _row_problems(sweep: Sweep, recipe: Recipe) -> Iterator[Problem]:
    """Yield what a sweep needs and the recipe does not have: validation rows, evaluations, test rows."""
    data, heads = recipe.data_to_read(), recipe.head_importance
    has_split = data.dataset_name is not None and data.validation_split is not None
    if not (has_split or data.validation_file or data.validation_rows or data.validation_size is not None):
        yield Problem(("recipe",), f"there are no validation rows to choose the best trial by; {NO_VALIDATION}")
    elif sweep.pruner != "none" and recipe.evaluation.eval_strategy == "no":
        text = f"pruner {sweep.pruner} needs evaluations during training, but eval_strategy is no; set pruner: none"
        yield Problem(("pruner",), text)
    if heads is not None and "test" in (heads.split, heads.curve_split) and not sweep.score_test_rows:
        text = "head_importance uses the test rows, which trials do not read; set score_test_rows: true"
        yield Problem(("recipe",), text)


def _difference_problems(recipe: Recipe, example: Recipe, objectives: Sequence[SweepObjective]) -> Iterator[str]:
    """Yield why the scores of a trial could not be compared with those of another one."""
    data, other = recipe.data_to_read(), example.data_to_read()
    is_held_out = not (data.validation_file or data.validation_rows or data.dataset_name)
    for key in (*_VALIDATION_KEYS, *(_TRAINING_KEYS if is_held_out else ())):
        if getattr(data, key) != getattr(other, key):
            yield f"data.{key} changes the validation rows, so scores could not be compared; remove it"
    for objective in objectives:
        if objective.name in example.metric_names() and objective.name not in recipe.metric_names():
            yield f"the recipe would have no {objective.name}, which the sweep optimizes; add it to evaluation.metrics"
