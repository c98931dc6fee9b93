"""What a run does where one label has most of the rows: macro F1 selects the model, and a hint names what helps."""

from __future__ import annotations

from collections.abc import Mapping

from finetune.recipe.schema import Recipe

# From this share of one class on, accuracy says little about the others: predicting that class for every row already
# scores 0.8. A class with less than a fifth of the rows is usually called a minority class (Google's machine learning
# course calls 20 to 40 % mild imbalance, and less moderate or extreme).
MAJORITY_SHARE = 0.8


def choose_best_metric(recipe: Recipe, label_counts: Mapping[str, int]) -> tuple[Recipe, str]:
    """Return the recipe with `metric_for_best_model` filled in, and a line with the reason ("" if it was not needed).

    The metric is chosen only for one label per row, and only if the recipe names no metric at all; otherwise the first
    of `evaluation.metrics` applies.

    Args:
        label_counts: number of training rows of each label.
    """
    evaluation = recipe.evaluation
    named_by_recipe = evaluation.metric_for_best_model or evaluation.metrics
    if named_by_recipe or recipe.task.problem_type != "single_label_classification":
        return recipe, ""
    largest = max(label_counts, key=lambda name: label_counts[name])
    share = label_counts[largest] / sum(label_counts.values())
    if recipe.training.class_weights is not None:
        reason = "training.class_weights is set"
    elif share >= MAJORITY_SHARE:
        reason = f"'{largest}' has {share:.0%} of the training rows, so accuracy hardly depends on the other labels"
    else:
        return recipe, ""
    chosen = evaluation.model_copy(update={"metric_for_best_model": "f1_macro"})
    line = f"Not set in the recipe, so chosen: evaluation.metric_for_best_model f1_macro, because {reason}."
    return recipe.model_copy(update={"evaluation": chosen}), line


def imbalance_hint(recipe: Recipe, label_counts: Mapping[str, int]) -> str:
    """Return what helps rare labels if one label has most rows and the recipe does nothing for the others, or "".

    Args:
        label_counts: number of training rows of each label.
    """
    training = recipe.training
    does_something = training.class_weights or training.focal_gamma or recipe.outputs.threshold_label
    by_label = isinstance(recipe.outputs.thresholds, dict)
    if recipe.task.problem_type != "single_label_classification" or does_something or by_label:
        return ""
    largest = max(label_counts, key=lambda name: label_counts[name])
    share = label_counts[largest] / sum(label_counts.values())
    if share < MAJORITY_SHARE:
        return ""
    rare = min(label_counts, key=lambda name: label_counts[name] or float("inf"))
    return (
        f"'{largest}' has {share:.0%} of the training rows. To find more of the others, give a rare label a threshold, "
        f"such as outputs.threshold_label='{rare}' outputs.thresholds=f1, or weight the labels with "
        "training.class_weights=balanced; `finetune help tasks` compares them."
    )
