"""The thresholds of a classifier: those that the recipe gives, or tuned on the validation rows.

N rows, C labels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune.errors import TrainingError, did_you_mean
from finetune.evaluation.prediction import Predictions
from finetune.evaluation.thresholds import Columns, Goal, fit_thresholds
from finetune.models.classifier import Classifier
from finetune.models.outputs import DEFAULT_THRESHOLD
from finetune.recipe.outputs_section import TUNED
from finetune.recipe.schema import Recipe
from finetune.runs.outputs import FittedThresholds


def check_threshold_labels(recipe: Recipe, label_names: Sequence[str]) -> None:
    """Raise TrainingError if the recipe names a label for a threshold that does not exist."""
    outputs = recipe.outputs
    named = {"threshold_label": [outputs.threshold_label] if outputs.threshold_label is not None else []}
    named["thresholds"] = list(_given_by_label(recipe) or ())
    for key, names in named.items():
        for name in names:
            if name not in label_names:
                raise TrainingError(
                    f"outputs.{key}: {name} is not a label; the labels are {', '.join(label_names[:20])}"
                    f"{did_you_mean(name, label_names)}"
                )


def tunes_thresholds(recipe: Recipe) -> bool:
    """Return whether thresholds are tuned on the validation rows."""
    outputs, problem_type = recipe.outputs, recipe.task.problem_type
    has_labels = problem_type == "multi_label_classification" or outputs.threshold_label is not None
    return has_labels and (outputs.thresholds in TUNED or outputs.target() is not None)


def with_thresholds(
    recipe: Recipe, classifier: Classifier, predictions: Predictions | None
) -> tuple[Classifier, FittedThresholds | None]:
    """Return the classifier with thresholds, and a record of them; None if no label gets one.

    Args:
        classifier: with the temperature that its probabilities will have.
        predictions: for the validation rows; None if there are none.
    """
    names = classifier.label_names
    if tunes_thresholds(recipe):
        if predictions is None:  # `auto`; the other settings require validation rows
            return classifier, None
        fitted = _tuned(recipe, classifier, predictions)
        return (_set(classifier, fitted.values) if fitted.used else classifier), fitted
    given = _given_by_label(recipe)
    if isinstance(recipe.outputs.thresholds, int | float):
        label = recipe.outputs.threshold_label
        given = dict.fromkeys(names if label is None else [label], recipe.outputs.thresholds)
    if not given or recipe.task.problem_type == "regression":
        return classifier, None
    return _set(classifier, given), FittedThresholds("the values in the recipe", given)


def _given_by_label(recipe: Recipe) -> dict[str, float] | None:
    """Return the thresholds that the recipe gives by label name."""
    thresholds = recipe.outputs.thresholds
    return thresholds if isinstance(thresholds, dict) and recipe.outputs.target() is None else None


def compared_f1(recipe: Recipe) -> str:
    """Return the F1 by which thresholds are compared: the one that selects the best checkpoint, else micro F1."""
    metric, several = recipe.best_metric(), recipe.task.problem_type == "multi_label_classification"
    return metric if several and metric in ("f1_micro", "f1_macro", "f1_weighted") else "f1_micro"


def _tuned(recipe: Recipe, classifier: Classifier, predictions: Predictions) -> FittedThresholds:
    rules, outputs, labels = classifier.rules, recipe.outputs, predictions.labels
    probabilities = rules.probabilities(predictions.logits.numpy())
    default = rules.decisions(probabilities)
    names = classifier.label_names
    if outputs.threshold_label is not None:
        index = names.index(outputs.threshold_label)
        probabilities, names = probabilities[:, [index]], [outputs.threshold_label]
        labels, default = (np.asarray(ids == index)[:, None] for ids in (labels, default))
    target = outputs.target()
    fitted = fit_thresholds(
        Columns(names, probabilities, labels.astype(int), default),
        Goal("f1") if target is None else Goal(target[0], target[1]),  # type: ignore[arg-type]  # a name in TARGETS
        metric=compared_f1(recipe),
        seed=recipe.rows_seed(),
    )
    helps = fitted.gain is not None and fitted.gain.value is not None and fitted.gain.value > 0
    return replace(fitted, used=helps or outputs.thresholds != "auto")


def _set(classifier: Classifier, values: dict[str, float]) -> Classifier:
    """Return the classifier with these thresholds; other labels have 0.5, or none with one label per row."""
    rest = DEFAULT_THRESHOLD if classifier.problem_type == "multi_label_classification" else None
    return replace(classifier, thresholds=tuple(values.get(name, rest) for name in classifier.label_names))
