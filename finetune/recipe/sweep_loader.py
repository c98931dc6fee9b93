"""Load a sweep file, and check every value of its space against the recipe. Imports neither torch nor Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune.errors import RecipeError, did_you_mean
from finetune.paths import absolute_path, new_dir_problem
from finetune.recipe.loader import load_recipe, problems_message, read_document
from finetune.recipe.schema import Recipe
from finetune.recipe.schema_validation import FOREIGN_NAMES, schema_problems
from finetune.recipe.shipped import PREFIX, sweep_file
from finetune.recipe.sweep_checks import candidate_problems, key_problems
from finetune.recipe.sweep_schema import Sweep
from finetune.recipe.sweep_space import (
    ParameterValue,
    SweepObjective,
    SweepParameter,
    as_overrides,
    flatten,
    read_space,
    settings_of,
)
from finetune.recipe.validation import Problem
from finetune.recipe.yaml_parser import Location, YamlValues

MAX_GRID = 10_000  # trials of a grid


@dataclass(frozen=True)
class LoadedSweep:
    """A valid sweep.

    Attributes:
        path: the sweep file.
        sweep: its keys, with absolute paths.
        parameters: its search space.
        objectives: what it optimizes.
        overrides: changes to the base recipe in every trial, as `section.key=value`.
        example: the recipe with the first value of every parameter.
    """

    path: Path
    sweep: Sweep
    parameters: list[SweepParameter]
    objectives: list[SweepObjective]
    overrides: list[str]
    example: Recipe

    @property
    def name(self) -> str:
        """The name of the study."""
        return self.sweep.study_name or self.path.stem

    def seeds(self) -> list[int]:
        """Return the seeds of each trial, those of the sweep or else of the recipe; [] if each trial is one run."""
        return list(self.sweep.seeds or self.example.seeds or [])

    def planned(self) -> int | None:
        """Return the number of trials that the sweep ends with; None if only time limits it."""
        if self.sweep.sampler != "grid":
            return self.sweep.trials
        size = math.prod(parameter.grid_size() or 1 for parameter in self.parameters)
        return size if self.sweep.trials is None else min(size, self.sweep.trials)

    def describe(self) -> str:
        """Return one line: how many trials, of which parameters, and what they optimize."""
        planned = self.planned()
        trials = "Trials until the time limit" if planned is None else f"{planned} trial{'s' * (planned > 1)}"
        seeds = f" with {len(self.seeds())} seeds each" if self.seeds() else ""
        names = ", ".join(parameter.name for parameter in self.parameters)
        goals = ", ".join(f"{objective.direction} {objective.name}" for objective in self.objectives)
        return f"{trials}{seeds} ({self.sweep.sampler}) over {names}; {goals} on the validation rows."

    def first_trial(self) -> Recipe:
        """Return the recipe of a trial with the first value of every parameter, for further checks."""
        values = {parameter.name: parameter.examples()[0] for parameter in self.parameters}
        return self.trial_recipe(values, Path(self.sweep.output_dir) / "trials" / "first")

    def recipe(self, values: Mapping[str, ParameterValue], **changes: object) -> Recipe:
        """Return the base recipe with the values and the rows of a trial, and `changes` to its top-level keys.

        Raises:
            RecipeError: the values do not fit together.
        """
        recipe = self._load({**settings_of(self.parameters, values), **changes})
        if recipe.seed == self.example.seed or recipe.data.split_seed is not None:
            return recipe
        # The seed varies, and trials have the rows of the first seed.
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"split_seed": self.example.seed})})

    def trial_recipe(self, values: Mapping[str, ParameterValue], folder: Path) -> Recipe:
        """Return the recipe with which a trial runs in its folder: resumed, and with the same rows in every trial.

        Raises:
            RecipeError: the values do not fit together.
        """
        changes: dict[str, object] = {"output_dir": str(folder), "checkpoint.resume_from_checkpoint": "auto"}
        if self.sweep.seeds is not None:
            changes["seeds"] = self.sweep.seeds
        if self.example.data.split_seed is None:
            changes["data.split_seed"] = self.example.seed
        if not self.sweep.score_test_rows:
            changes |= dict.fromkeys(("data.test_file", "data.test_rows", "data.test_split"))
        return self._load({**settings_of(self.parameters, values), **changes})

    def _load(self, changes: Mapping[str, object]) -> Recipe:
        return load_recipe(self.sweep.recipe, [*self.overrides, *as_overrides(changes)])


def is_sweep_file(path: str | Path) -> bool:
    """Return whether a file is a sweep, and not a recipe; False if it cannot be read."""
    try:
        document = read_document(sweep_file(path), YamlValues())
    except RecipeError:
        return False
    return "space" in document


def load_sweep(path: str | Path, overrides: Sequence[str] = (), **changes: object) -> LoadedSweep:
    """Return the sweep in a file or of the name `sweep:NAME`, after all checks that need no data and no storage.

    Args:
        overrides: further changes to the recipe in every trial, as `section.key=value`.
        changes: to keys of the sweep file, such as trials=20; None changes nothing.

    Raises:
        RecipeError: the file, the recipe, or a value of the space has mistakes; the message has one line per mistake.
    """
    path, values = sweep_file(path), YamlValues()
    document = read_document(path, values, "sweep")
    if "space" not in document and document.keys() & {"model", "data", "training"}:
        raise RecipeError(
            f"{path} is a recipe, not a sweep; run it with `finetune train`, or name it as recipe in a sweep file"
        )
    document |= {key: value for key, value in changes.items() if value is not None}
    document.setdefault("output_dir", f"runs/{path.stem}")
    problems = [Problem(location, text) for location, text in values.problems]
    sweep: Sweep | None = None
    example: Recipe | None = None
    parameters: list[SweepParameter] = []
    objectives: list[SweepObjective] = []
    all_overrides: list[str] = []
    try:
        sweep = Sweep.model_validate(document)
    except ValidationError as error:
        problems += schema_problems(error, document, values.lines, MAX_GRID, _unknown_key)
    if isinstance(document.get("space"), dict):
        parameters, mistakes = read_space(document["space"])
        problems += mistakes
    if sweep is not None and not problems:
        sweep = _with_absolute_paths(sweep, path)
        all_overrides = [*as_overrides(flatten(sweep.overrides)), *overrides]
        problems += [*_own_problems(sweep, parameters), *key_problems(sweep, parameters, overrides)]
        if not problems:
            example, objectives, problems = candidate_problems(sweep, parameters, all_overrides)
    if problems or sweep is None or example is None:
        raise RecipeError(problems_message(path, problems, values.lines))
    return LoadedSweep(path, sweep, parameters, objectives, all_overrides, example)


def _unknown_key(location: Location) -> str:
    """Return the message for a key that a sweep file does not have."""
    name = str(location[-1])
    hint = did_you_mean(name, Sweep.model_fields)
    if not hint and (name in Recipe.model_fields or "." in name or name in FOREIGN_NAMES):
        hint = "; keys of the recipe are changed under overrides, and varied under space"
    return f"unknown key{hint}"


def _with_absolute_paths(sweep: Sweep, path: Path) -> Sweep:
    """Return the sweep with absolute paths; that of the recipe is relative to the sweep file."""
    recipe = sweep.recipe if sweep.recipe.startswith(PREFIX) else str(absolute_path(path).parent / Path(sweep.recipe))
    return sweep.model_copy(update={"recipe": recipe, "output_dir": str(absolute_path(sweep.output_dir))})


def _own_problems(sweep: Sweep, parameters: Sequence[SweepParameter]) -> Iterator[Problem]:
    """Yield mistakes that need no recipe."""
    if problem := new_dir_problem(sweep.output_dir):
        yield Problem(("output_dir",), f"'{sweep.output_dir}' {problem}")
    if sweep.sampler != "grid":
        return
    for parameter in parameters:
        if parameter.grid_size() is None:
            text = "sampler grid needs a list of values, or a range with a step; add one, or set sampler: random or tpe"
            yield Problem(("space", parameter.name), text)
    size = math.prod(parameter.grid_size() or 1 for parameter in parameters)
    if size > MAX_GRID:
        yield Problem(
            ("space",), f"the grid has {size:,} combinations, and at most {MAX_GRID:,} are allowed; use sampler: random"
        )
