"""Checks of the section `outputs` that need several keys of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.errors import did_you_mean
from finetune.recipe.outputs_section import TARGETS
from finetune.recipe.validation import Problem, section_of


def threshold_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with thresholds that do not apply, are out of range, or lack the class that gets one."""
    outputs, task = section_of(document, "outputs"), section_of(document, "task")
    problem_type = task.get("problem_type", "single_label_classification")
    thresholds, label = outputs.get("thresholds", "auto"), outputs.get("threshold_label")
    is_number = type(thresholds) in (int, float) and 0 <= thresholds <= 1
    is_set = (
        thresholds == "f1" or isinstance(thresholds, dict) or is_number
    )  # anything else is reported as a wrong value
    target = (
        thresholds if isinstance(thresholds, dict) and len(thresholds) == 1 and set(thresholds) <= set(TARGETS) else {}
    )
    names = task.get("label_names")
    for name, value in target.items():
        if value in (0, 1):
            yield Problem(("outputs", "thresholds", name), f"given {value}; must be above 0 and below 1")
    if problem_type == "regression" and (is_set or label is not None):
        key = "thresholds" if is_set else "threshold_label"
        yield Problem(("outputs", key), "needs labels, but problem_type is regression; remove it")
    elif problem_type == "multi_label_classification" and label is not None:
        text = "is for one label per row; here every label has a threshold, so remove it"
        yield Problem(("outputs", "threshold_label"), text)
    elif problem_type == "single_label_classification":
        by_label = isinstance(thresholds, dict) and not target
        if label is not None and (thresholds is None or by_label):
            other = "gives the labels itself" if by_label else "is null, so no class gets a threshold"
            yield Problem(("outputs", "threshold_label"), f"cannot be used where thresholds {other}; remove one")
        elif label is None and is_set and not by_label:
            text = "name the class that gets the threshold with outputs.threshold_label, such as the rare one"
            yield Problem(("outputs", "thresholds"), text)
    given = [("threshold_label", label)] if isinstance(label, str) else []
    given += [("thresholds", name) for name in thresholds if not target] if isinstance(thresholds, dict) else []
    for key, name in given:
        if isinstance(names, list) and name not in names:
            text = f"{name} is not a label; the labels are {', '.join(map(str, names))}"
            yield Problem(("outputs", key), text + did_you_mean(str(name), map(str, names)))
