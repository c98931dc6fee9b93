"""The default metric for the best model: finetune/training/best_metric.py."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.recipe.schema import Recipe
from finetune.training.best_metric import choose_best_metric, imbalance_hint

BALANCED, IMBALANCED = {"no": 60, "yes": 40}, {"no": 80, "yes": 20}
MULTI_LABEL = {"task": {"problem_type": "multi_label_classification"}}


def recipe_with(**sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {"output_dir": "x", "model": {"model_name_or_path": "m"}, "data": {"train_file": "a.csv"}, **sections}
    )


@pytest.mark.parametrize(
    ("counts", "sections", "reason"),
    [
        (IMBALANCED, {}, "'no' has 80% of the training rows, so accuracy hardly depends on the other labels"),
        (BALANCED, {"training": {"class_weights": "balanced"}}, "training.class_weights is set"),
        (BALANCED, {"training": {"class_weights": {"yes": 2.0}}}, "training.class_weights is set"),
    ],
)
def test_macro_f1_selects_the_model_where_accuracy_hides_a_class(
    counts: dict[str, int], sections: dict[str, Any], reason: str
) -> None:
    recipe, line = choose_best_metric(recipe_with(**sections), counts)
    assert recipe.best_metric() == recipe.evaluation.metric_for_best_model == "f1_macro"
    assert line == f"Not set in the recipe, so chosen: evaluation.metric_for_best_model f1_macro, because {reason}."
    assert choose_best_metric(recipe, BALANCED) == (recipe, "")  # a resolved recipe keeps its metric


@pytest.mark.parametrize(
    ("counts", "sections", "metric"),
    [
        (BALANCED, {}, "accuracy"),
        ({"no": 79, "yes": 21}, {}, "accuracy"),
        (IMBALANCED, {"evaluation": {"metric_for_best_model": "accuracy"}}, "accuracy"),
        (IMBALANCED, {"evaluation": {"metrics": ["matthews_correlation", "accuracy"]}}, "matthews_correlation"),
        (IMBALANCED, MULTI_LABEL, "f1_micro"),
        ({}, {"task": {"problem_type": "regression"}}, "mean_squared_error"),
    ],
)
def test_otherwise_the_first_metric_selects_the_model(
    counts: dict[str, int], sections: dict[str, Any], metric: str
) -> None:
    recipe = recipe_with(**sections)
    assert choose_best_metric(recipe, counts) == (recipe, "")
    assert recipe.best_metric() == metric


@pytest.mark.parametrize(
    ("counts", "sections", "is_given"),
    [
        (IMBALANCED, {}, True),
        ({"no": 79, "yes": 21}, {}, False),
        (IMBALANCED, {"training": {"class_weights": "balanced"}}, False),
        (IMBALANCED, {"training": {"focal_gamma": 2.0}}, False),
        (IMBALANCED, {"outputs": {"threshold_label": "yes"}}, False),
        (IMBALANCED, {"outputs": {"thresholds": {"yes": 0.3}}}, False),
        (IMBALANCED, MULTI_LABEL, False),
        ({}, {"task": {"problem_type": "regression"}}, False),
    ],
)
def test_a_run_on_imbalanced_rows_prints_what_helps(
    counts: dict[str, int], sections: dict[str, Any], is_given: bool
) -> None:
    hint = imbalance_hint(recipe_with(**sections), counts)
    assert bool(hint) == is_given
    assert ("outputs.threshold_label='yes' outputs.thresholds=f1" in hint) == is_given
    assert ("'no' has 80% of the training rows" in hint) == is_given
