"""The names that recipe values can have: problem types, projection roles, splits, head methods and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Role = Literal["query", "key", "value", "output"]
Split = Literal["train", "validation", "test"]
BASELINES = ("majority", "tfidf", "frozen_encoder")  # pipeline/baselines.py fits each
if TYPE_CHECKING:
    BaselineName = str
else:
    BaselineName = Literal[BASELINES]


@dataclass(frozen=True)
class HeadMethodInfo:
    """What a head method computes, and on how many rows unless the recipe gives a number.

    Attributes:
        formula: one line.
        rows: number of rows; the more passes the method makes over a row, the fewer rows.
        iterative_rows: the same for the `iterative_` variant, which makes about nine times as many passes; None if
            there is no such variant.
    """

    formula: str
    rows: int = 256
    iterative_rows: int | None = None


# L is the loss, p the prediction. heads/methods.py has a function for each name. Attention statistics and learned
# scores have no iterative variant.
HEAD_METHODS: dict[str, HeadMethodInfo] = {
    "gradient": HeadMethodInfo("E|dL/dgate|", iterative_rows=128),
    "gradient_layer_norm": HeadMethodInfo("E|dL/dgate| over the layer's norm", iterative_rows=128),
    "integrated_gradients": HeadMethodInfo("share of L(0) - L(1)", iterative_rows=32),
    "fisher": HeadMethodInfo("E(dL/dgate)^2", iterative_rows=128),
    "ablation_loss": HeadMethodInfo("L without the head - L", rows=128, iterative_rows=32),
    "ablation_kl": HeadMethodInfo("KL(p || p without the head)", rows=128, iterative_rows=32),
    "ablation_accuracy": HeadMethodInfo("accuracy - accuracy without", rows=128, iterative_rows=32),
    "shapley": HeadMethodInfo("Shapley value for the loss", rows=32, iterative_rows=16),
    "confidence": HeadMethodInfo("mean largest attention weight"),
    "entropy": HeadMethodInfo("minus entropy of attention, nats"),
    "gates": HeadMethodInfo("log-odds of a learned gate", rows=128),
    "learned_order": HeadMethodInfo("score learned by removal"),
    "random": HeadMethodInfo("chance"),
}
ITERATIVE = "iterative_"  # prefix: the remaining heads are scored again after each tenth is removed
HEAD_METHOD_NAMES = (
    *HEAD_METHODS,
    *(ITERATIVE + name for name, method in HEAD_METHODS.items() if method.iterative_rows),
)
if TYPE_CHECKING:
    HeadMethod = str
else:
    HeadMethod = Literal[HEAD_METHOD_NAMES]


def default_rows(method: str) -> int:
    """Return the number of rows on which a head method ranks the heads unless the recipe gives a number."""
    info = HEAD_METHODS[method.removeprefix(ITERATIVE)]
    return info.iterative_rows or info.rows if method.startswith(ITERATIVE) else info.rows


@dataclass(frozen=True)
class Metric:
    """The description of a metric.

    Attributes:
        description: one line for people.
        hub_name: the name of the metric in model cards on the hub, which has one for all averages of F1.
        lower_is_better: whether it measures an error.
        other_names: its names in other tools, for suggestions in error messages.
        needs_probabilities: whether it is computed from probabilities instead of predicted labels.
        bounds: the values that it can have; None if it has no lower or no upper bound.
    """

    description: str
    hub_name: str
    lower_is_better: bool = False
    other_names: tuple[str, ...] = ()
    needs_probabilities: bool = False
    bounds: tuple[float, float] | None = None


_SHARE, _CORRELATION = (0.0, 1.0), (-1.0, 1.0)
# The metrics of the toolkit; their formulas are in finetune/evaluation/metric_formulas.py. A report has all of them
# unless the recipe lists others. named_metrics.py has those of scikit-learn.
# The first metric of each problem type selects the best checkpoint, unless the recipe names another one.
METRICS: dict[str, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": Metric("share of rows whose label was predicted", "accuracy", bounds=_SHARE),
        "f1_macro": Metric("mean F1 of the classes that occur as a label or a prediction", "f1", bounds=_SHARE),
        "f1_micro": Metric("F1 of the counts summed over all classes; equals accuracy", "f1", bounds=_SHARE),
        "f1_weighted": Metric("mean F1 of the classes, weighted by their numbers of rows", "f1", bounds=_SHARE),
        "matthews_correlation": Metric(
            "Matthews correlation coefficient, from -1 to 1; 0 is chance level",
            "matthews_correlation",
            other_names=("matthews_corrcoef", "mcc"),
            bounds=_CORRELATION,
        ),
    },
    "multi_label_classification": {
        "f1_micro": Metric("F1 of the counts summed over all labels", "f1", bounds=_SHARE),
        "f1_macro": Metric("mean F1 of all labels", "f1", bounds=_SHARE),
        "f1_weighted": Metric("mean F1 of all labels, weighted by their numbers of rows", "f1", bounds=_SHARE),
        "subset_accuracy": Metric(
            "share of rows whose full set of labels was predicted",
            "exact_match",
            other_names=("accuracy", "exact_match"),
            bounds=_SHARE,
        ),
    },
    "regression": {
        "mean_squared_error": Metric("mean squared error", "mse", lower_is_better=True, other_names=("mse",)),
        "mean_absolute_error": Metric("mean absolute error", "mae", lower_is_better=True, other_names=("mae",)),
        "pearson": Metric(
            "Pearson correlation of predictions and labels", "pearsonr", other_names=("pearsonr",), bounds=_CORRELATION
        ),
        "spearman": Metric(
            "Spearman rank correlation of predictions and labels",
            "spearmanr",
            other_names=("spearmanr",),
            bounds=_CORRELATION,
        ),
    },
}
