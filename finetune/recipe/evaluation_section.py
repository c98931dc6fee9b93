"""The keys of the recipe's sections `evaluation` and `head_importance`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from finetune.recipe.names import BASELINES, BaselineName, HeadMethod, Split, default_rows
from finetune.recipe.section import Auto, Count, Section, Strategy, default_strategy


class EvaluationSection(Section):
    """When and how the classifier is evaluated."""

    eval_strategy: Strategy | None = Field(
        None,
        description="When the classifier is evaluated: after each epoch, every eval_steps steps, or never (no); "
        "null is steps if eval_steps is given, otherwise epoch, at most 10 times if num_train_epochs is"
        " auto.",
    )
    eval_steps: Count = Field(
        500, description="Number of optimizer steps between two evaluations, if eval_strategy is steps."
    )
    per_device_eval_batch_size: Count = Field(
        64, description="Number of rows per device in one forward pass of evaluation."
    )
    metrics: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Metrics to report: names of the table in the guide on runs, or paths of Python files with an "
        "evaluate.Metric; null reports the metrics of the toolkit for the problem type.",
    )
    metric_for_best_model: str | None = Field(
        None,
        description="Metric that selects the best checkpoint, or loss; null uses the first of metrics, but f1_macro if "
        "metrics is null and class_weights are set or one label has at least 80 % of the training rows.",
    )
    best_model_tolerance: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto",
        description="Distance below the highest value of metric_for_best_model within which a later evaluation "
        "replaces an earlier one as the best; auto gives one standard error of the metric if num_train_epochs is auto "
        "too, otherwise 0.",
    )
    early_stopping_patience: Count | Auto | None = Field(
        "auto",
        description="Number of evaluations without improvement after which training stops; auto gives half of the "
        "evaluations of the run if num_train_epochs is auto too, and null never stops early.",
    )
    bootstrap_samples: Annotated[int, Field(ge=100)] = Field(
        2000,
        description="Number of bootstrap resamples for the intervals of calibration and of metrics of scikit-learn; "
        "the other intervals need none.",
    )
    score_training_rows: bool = Field(
        False,
        description="Whether the scores on the training rows are reported too, to see by how much they exceed those on "
        "other rows.",
    )
    baselines: Annotated[list[BaselineName], Field(min_length=1)] | None = Field(
        list(BASELINES),
        description="Baselines that are fitted to the training rows and compared with the classifier: a constant "
        "prediction, TF-IDF with a linear model, and a linear model on the pretrained encoder; null uses none.",
    )
    label_errors: bool = Field(
        True,
        description="Whether rows whose label may be wrong are listed, in label_errors.csv and in the report; "
        "for classification.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_strategy(cls, values: object) -> object:
        return default_strategy(values, "eval")

    @model_validator(mode="after")
    def _check_baselines(self) -> EvaluationSection:
        if self.baselines is not None and len(set(self.baselines)) < len(self.baselines):
            raise ValueError(f"baselines is {', '.join(self.baselines)}; list each baseline once")
        return self


@dataclass(frozen=True)
class MethodSettings:
    """The settings of one head method.

    Attributes:
        max_samples: largest number of rows; None: all rows of the split.
        integration_steps: number of points on the path of the integrated-gradients methods.
    """

    name: str
    max_samples: int | None
    integration_steps: int


class HeadMethodSettings(Section):
    """A head method with settings of its own; `auto` is the value that the section gives for all methods."""

    name: HeadMethod = Field(description="Name of the method that has these settings.")
    max_samples: Count | Auto | None = Field(
        "auto", description="Number of rows used by this method; null uses all rows of the split."
    )
    integration_steps: Count | Auto = Field("auto", description="Number of points on the path of this method.")


def _form(value: object) -> str:
    """Return the tag of the form in which a method is given: its name, a mapping or a list."""
    return "(list)" if isinstance(value, list) else "(mapping)" if isinstance(value, dict | Section) else "(name)"


_Method = Annotated[
    Annotated[HeadMethod, Tag("(name)")] | Annotated[HeadMethodSettings, Tag("(mapping)")], Discriminator(_form)
]
_Methods = Annotated[
    Annotated[HeadMethod, Tag("(name)")]
    | Annotated[HeadMethodSettings, Tag("(mapping)")]
    | Annotated[list[_Method], Field(min_length=1), Tag("(list)")],
    Discriminator(_form),
]


class HeadImportanceSection(Section):
    """How the importance of the attention heads is measured and tested."""

    method: _Methods = Field(
        "learned_order",
        description="The method that scores the heads, or a list of methods, of which the first one ranks the heads. A "
        "method with settings of its own is a mapping, such as {name: gradient, max_samples: 128}.",
    )
    split: Split = Field("train", description="Split whose rows are used to rank the heads.")
    max_samples: Count | Auto | None = Field(
        "auto",
        description="Number of rows used to rank the heads; auto chooses it by method (256 for the default method), "
        "and null uses all rows of the split.",
    )
    max_cost: Annotated[float, Field(gt=0)] | None = Field(
        0.05,
        description="Largest cost of learned_order, the default method, as a share of the cost of the training; null "
        "sets no limit. Other methods have no limit.",
    )
    max_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Number of seconds after which a method stops taking further rows or steps; null sets no limit.",
    )
    integration_steps: Count = Field(
        8,
        description="Number of points on the path of the integrated-gradients methods, each of which is a pass over"
        " the rows.",
    )
    curve_split: Split | None = Field(
        "validation", description="Split whose rows test the ranking with a pruning curve; null skips the test."
    )
    curve_samples: Count | None = Field(
        300, description="Number of rows that test the ranking; null uses all rows of curve_split."
    )
    random_orders: Annotated[int, Field(ge=0)] = Field(
        3, description="Number of random pruning orders with which the ranking is compared."
    )
    leave_one_out: bool = Field(
        False,
        description="Whether each head is also removed alone on the rows of curve_split, with a significance test, "
        "and its weight change undone alone; by default neither is done.",
    )
    name_heads: bool = Field(
        False,
        description="Whether tests on the rows of curve_split name the heads that are essential, redundant, harmful or "
        "unused; give at least 1,000 rows. By default no head is named.",
    )
    explained_rows: Annotated[int, Field(ge=0)] = Field(
        40,
        description="Number of held-out rows that are explained in detail: the exact effect of each head, the tokens "
        "that carry the score, and attention maps; 0 explains no row.",
    )

    @model_validator(mode="after")
    def _check_methods(self) -> HeadImportanceSection:
        names = [settings.name for settings in self._given()]
        if len(set(names)) < len(names):
            raise ValueError(f"method is {', '.join(names)}; list each method once")
        if self.leave_one_out and self.curve_split is None:
            raise ValueError("leave_one_out needs the rows of curve_split, which is null; name a split")
        if self.name_heads and self.curve_split is None:
            raise ValueError("name_heads needs the rows of curve_split, which is null; name a split")
        return self

    def methods(self) -> list[str]:
        """Return the names of the methods; the first one ranks the heads."""
        return [settings.name for settings in self._given()]

    def settings_of(self, method: str) -> MethodSettings:
        """Return the number of rows and of integration steps of a method, also of one that the recipe does not list."""
        given = next((settings for settings in self._given() if settings.name == method), None)
        rows = self.max_samples if given is None or given.max_samples == "auto" else given.max_samples
        steps = "auto" if given is None else given.integration_steps
        return MethodSettings(
            method,
            default_rows(method) if rows == "auto" else rows,
            self.integration_steps if steps == "auto" else steps,
        )

    def _given(self) -> list[HeadMethodSettings]:
        """Return the methods as mappings."""
        methods = self.method if isinstance(self.method, list) else [self.method]
        return [
            method if isinstance(method, HeadMethodSettings) else HeadMethodSettings(name=method) for method in methods
        ]
