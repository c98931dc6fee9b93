"""Options of the section `outputs` that need several keys: finetune/recipe/outputs_rules.py."""

from __future__ import annotations

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from tests.support.recipes import MINIMAL, WriteRecipe

REGRESSION, MULTI = "{problem_type: regression}", "{problem_type: multi_label_classification}"
NAMED = "{label_names: [no, yes]}"
WRONG = [
    ("{thresholds: 1.5}", NAMED, r"outputs.thresholds .*less than or equal to 1"),
    ("{thresholds: best}", NAMED, r"outputs.thresholds .*given 'best'"),
    ("{thresholds: {recall: 1.0}}", MULTI, r"thresholds.recall .*given 1.0; must be above 0 and below 1"),
    ("{thresholds: 0.3}", REGRESSION, r"thresholds .*needs labels, but problem_type is regression"),
    ("{threshold_label: x}", REGRESSION, r"threshold_label .*needs labels, but problem_type is regression"),
    ("{threshold_label: x}", MULTI, r"threshold_label .*every label has a threshold, so remove it"),
    ("{thresholds: 0.3}", NAMED, r"thresholds .*name the class that gets the threshold with outputs.threshold_label"),
    ("{thresholds: {precision: 0.9}}", NAMED, r"thresholds .*name the class that gets the threshold"),
    ("{thresholds: null, threshold_label: yes}", NAMED, r"threshold_label .*is null, so no class gets a threshold"),
    ("{thresholds: {yes: 0.3}, threshold_label: yes}", NAMED, r"threshold_label .*gives the labels itself; remove one"),
    (
        "{thresholds: {yess: 0.3}}",
        NAMED,
        r"thresholds .*yess is not a label; the labels are no, yes; did you mean 'yes'",
    ),
    ("{thresholds: f1, threshold_label: maybe}", NAMED, r"threshold_label .*maybe is not a label"),
]


@pytest.mark.parametrize(("outputs", "task", "message"), WRONG)
def test_a_wrong_setting_is_reported(write_recipe: WriteRecipe, outputs: str, task: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(f"{MINIMAL}task: {task}\noutputs: {outputs}\n"))


@pytest.mark.parametrize(
    ("outputs", "task"),
    [
        ("{thresholds: auto}", REGRESSION),
        ("{thresholds: f1}", MULTI),
        ("{thresholds: {precision: 0.9}}", MULTI),
        ("{thresholds: {no: 0.3, yes: 1}}", "{problem_type: multi_label_classification, label_names: [no, yes]}"),
        ("{thresholds: {yes: 0.3}}", NAMED),
        ("{thresholds: {recall: 0.9}, threshold_label: yes}", NAMED),
        ("{threshold_label: yes}", NAMED),
    ],
)
def test_a_right_setting_is_accepted(write_recipe: WriteRecipe, outputs: str, task: str) -> None:
    recipe = load_recipe(write_recipe(f"{MINIMAL}task: {task}\noutputs: {outputs}\n"))
    assert recipe.outputs.needs_validation_rows() == ("f1" in outputs or "precision" in outputs or "recall" in outputs)
