"""The names that recipe values can have: problem types, projection roles, splits, head methods and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Role = Literal["query", "key", "value", "output"]
Split = Literal["train", "validation", "test"]
HeadMethod = Literal[
    "gradient",
    "gradient_layer_norm",
    "integrated_gradients",
    "fisher",
    "ablation_loss",
    "ablation_kl",
    "ablation_accuracy",
    "shapley",
    "confidence",
    "entropy",
    "gates",
    "learned_order",
    "random",
    "iterative_gradient",
    "iterative_gradient_layer_norm",
    "iterative_integrated_gradients",
    "iterative_fisher",
    "iterative_ablation_loss",
    "iterative_ablation_kl",
    "iterative_ablation_accuracy",
    "iterative_shapley",
]


@dataclass(frozen=True)
class Metric:
    """What is known of a metric apart from its formula, which is in finetune/evaluation/metrics.py.

    Attributes:
        description: one line for people.
        lower_is_better: whether it measures an error.
        other_names: what other tools call it; used to suggest the right name.
    """

    description: str
    lower_is_better: bool = False
    other_names: tuple[str, ...] = ()


# The first metric of each problem type selects the best checkpoint unless the recipe names another.
METRICS: dict[str, dict[str, Metric]] = {
    "single_label_classification": {
        "accuracy": Metric("share of rows whose label was predicted"),
        "f1_macro": Metric("mean F1 of the classes that occur as a label or a prediction"),
        "f1_micro": Metric("F1 of the counts summed over all classes; equals accuracy"),
        "f1_weighted": Metric("mean F1 of the classes, weighted by their numbers of rows"),
        "matthews_correlation": Metric(
            "Matthews correlation coefficient, from -1 to 1; 0 is chance level",
            other_names=("matthews_corrcoef", "mcc"),
        ),
    },
    "multi_label_classification": {
        "f1_micro": Metric("F1 of the counts summed over all labels"),
        "f1_macro": Metric("mean F1 of all labels"),
        "f1_weighted": Metric("mean F1 of all labels, weighted by their numbers of rows"),
        "subset_accuracy": Metric(
            "share of rows whose full set of labels was predicted", other_names=("accuracy", "exact_match")
        ),
    },
    "regression": {
        "mean_squared_error": Metric("mean squared error", lower_is_better=True, other_names=("mse", "rmse")),
        "mean_absolute_error": Metric("mean absolute error", lower_is_better=True, other_names=("mae",)),
        "pearson": Metric("Pearson correlation of predictions and labels", other_names=("pearsonr",)),
        "spearman": Metric("Spearman rank correlation of predictions and labels", other_names=("spearmanr",)),
    },
}
LOWER_IS_BETTER = frozenset(
    {"loss"} | {name for table in METRICS.values() for name, metric in table.items() if metric.lower_is_better}
)
