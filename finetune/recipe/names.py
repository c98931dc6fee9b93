"""The names that a recipe may use: problem types, roles of projections, splits, head methods and metrics."""

from __future__ import annotations

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

METRICS: dict[str, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews_correlation"),
    "multi_label_classification": ("f1_micro", "f1_macro", "f1_weighted", "subset_accuracy"),
    "regression": ("mean_squared_error", "mean_absolute_error", "pearson", "spearman"),
}
