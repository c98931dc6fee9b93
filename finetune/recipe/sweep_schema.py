"""The keys of a sweep file: which recipe is run how often, with which values, and what is optimized."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.recipe.section import Count, Section


class Objective(Section):
    """One value that the sweep optimizes."""

    name: str = Field(
        description="A validation metric of the recipe, loss, train_seconds, parameters, or trainable_parameters."
    )
    direction: Literal["maximize", "minimize"] | None = Field(
        None, description="Whether high or low values are better; null, the default, follows from the name."
    )


class Range(Section):
    """A range of numbers; if low, high and step are whole numbers, it has only whole numbers."""

    low: int | float = Field(description="The lowest value.")
    high: int | float = Field(description="The highest value.")
    log: bool = Field(False, description="Whether values are drawn on a logarithmic scale; by default they are not.")
    step: int | float | None = Field(
        None, description="Distance between two values; null allows any number, or any whole number."
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; with log: true it must be above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step are both given; remove one of them")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step is {self.step}; it must be above 0 and at most high - low = {self.high - self.low}")
        return self

    def is_integer(self) -> bool:
        """Return whether the range has only whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)


class Sweep(Section):
    """A sweep: a recipe that is run several times with different values of some keys."""

    recipe: str = Field(
        description="The recipe that is run: a path relative to the sweep file, or recipe:NAME for a shipped recipe."
    )
    overrides: dict[str, object] = Field(
        {}, description="Changes to the recipe in every trial, such as {training.num_train_epochs: 2}; by default none."
    )
    output_dir: str = Field(description="Folder of the sweep; by default runs/ and the name of the sweep file.")
    storage: str | None = Field(
        None,
        description="URL of the Optuna storage, such as postgresql+psycopg://user@host/database; null, the default, is "
        "a SQLite file in output_dir.",
    )
    study_name: str | None = Field(
        None, description="Name of the study in the storage; null is the name of the sweep file."
    )
    sampler: Literal["grid", "random", "tpe"] = Field(
        "tpe",
        description="How the values of a trial are chosen: every combination (grid), at random, or by what earlier "
        "trials scored (tpe, the default).",
    )
    sampler_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="Seed of the sampler.")
    trials: Count | None = Field(
        None, description="Number of trials; null runs the full grid, or until timeout_minutes with another sampler."
    )
    timeout_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Minutes after which no further trial is started; null sets no limit."
    )
    objectives: Annotated[list[Objective], Field(min_length=1)] | None = Field(
        None, description="What is optimized, on validation rows; null is the metric that selects the best checkpoint."
    )
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none",
        description="How hopeless trials are stopped early: never (none, the default), if worse than the median of "
        "earlier trials after as many evaluations (median), or by successive halving (hyperband).",
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=2)] | None = Field(
        None, description="Seeds that each trial is run with, such as [1, 2, 3]; null runs it once, with its own seed."
    )
    score_test_rows: bool = Field(
        False,
        description="Whether trials are also scored on the test rows; by default only the chosen recipe can be. The "
        "choice of the best trial never uses these scores.",
    )
    space: dict[str, object] = Field(
        description="What varies: recipe key -> list of values, or {low, high, log, step}; or a name without a dot -> "
        "options, each of which is a mapping of recipe keys."
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Sweep:
        names = [objective.name for objective in self.objectives or ()]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives are {', '.join(names)}; list each objective once")
        if self.pruner != "none" and len(names) > 1:
            raise ValueError(f"pruner {self.pruner} needs a single objective, given {len(names)}; set pruner: none")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {', '.join(map(str, self.seeds))}; list each seed once")
        if self.sampler != "grid" and self.trials is None and self.timeout_minutes is None:
            raise ValueError(f"sampler {self.sampler} never ends by itself; set trials or timeout_minutes")
        return self
