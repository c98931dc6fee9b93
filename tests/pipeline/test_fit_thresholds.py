"""Thresholds of a run: finetune/pipeline/fit_thresholds.py."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from finetune.errors import TrainingError
from finetune.evaluation.prediction import Predictions
from finetune.models.classifier import Classifier
from finetune.pipeline.fit_thresholds import check_threshold_labels, tunes_thresholds, with_thresholds
from finetune.recipe.schema import Recipe
from finetune.runs.json_files import read_json
from finetune.runs.outputs import FittedOutputs
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, finished, read_back, recipe

MULTI = "multi_label_classification"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with one label per row, in which label 1 has a threshold for a recall of 0.9."""
    outputs = {"thresholds": {"recall": 0.9}, "threshold_label": "1"}
    content = recipe(SCRATCH, outputs=outputs, training={"num_train_epochs": 1}) | {"head_importance": None}
    return RunFolder(finished(tmp_path_factory.mktemp("run"), content))


def test_predictions_and_model_use_the_threshold_of_a_label(run: RunFolder) -> None:
    none, threshold = json.loads((run.model / "classifier.json").read_text())["thresholds"]
    assert none is None
    table = pq.read_table(run.predictions)
    assert len(table) == 80
    probabilities = np.array(table["probabilities"].to_pylist())[:, 1]
    assert table["predicted"].to_pylist() == [str(int(value > threshold)) for value in probabilities]
    validation = np.array(table["split"].to_pylist()) == "validation"
    found = probabilities[validation & (np.array(table["label"].to_pylist()) == "1")] > threshold
    assert len(found) == 20
    assert found.sum() == 19  # all but the lowest k = floor(0.1 * 21) = 2, of which the second lowest is still found
    classifier = read_back(run.path).inputs.classifier
    assert classifier.rules.thresholds == (None, threshold)
    predicted = [prediction.label for prediction in classifier.predict(table["text"].to_pylist())]
    assert predicted == table["predicted"].to_pylist()


def test_the_record_says_what_the_threshold_changes(run: RunFolder) -> None:
    fitted = read_json(run.fitted_outputs, FittedOutputs)
    assert fitted.rows == 40
    assert fitted.thresholds is not None
    assert fitted.thresholds.goal == "a recall of at least 0.9"
    assert list(fitted.thresholds.values) == ["1"]
    text = fitted.thresholds.text(fitted.rows)
    assert text.startswith("Thresholds tuned on the 40 validation rows for a recall of at least 0.9: 1 0.")
    assert "(cross-fitted)" in text
    assert "The validation scores are optimistic" in text
    note = "The classifier has thresholds, and the baselines predict the most probable label."
    assert json.loads(run.baselines.read_text())["note"] == note
    assert f"classifier minus baseline. {note}" in run.report.read_text(encoding="utf-8")
    assert f"Scored on the same rows. {note}" in (run.path / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(run: RunFolder) -> Classifier:
    return replace(read_back(run.path).inputs.classifier, thresholds=None)


def recipe_of(problem_type: str = MULTI, **outputs: object) -> Recipe:
    content = {"output_dir": "x", "model": {"model_name_or_path": "m"}, "data": {"train_file": "a.csv"}}
    return Recipe.model_validate(content | {"task": {"problem_type": problem_type}, "outputs": outputs})


def multi_label(classifier: Classifier, shift: float) -> tuple[Classifier, Predictions]:
    """Return a classifier for several labels per row, and predictions whose logits are `shift` too low."""
    classifier.base.config.problem_type = MULTI
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (200, len(classifier.label_names)))
    logits = torch.from_numpy(4.0 * labels - 2 + generator.normal(size=labels.shape) - shift).float()
    return classifier, Predictions(logits, torch.ones(200), labels, classifier.rules)


@pytest.mark.parametrize(
    ("thresholds", "shift", "used"),
    [("auto", 1.5, True), ("auto", 0.0, False), ("f1", 0.0, True), (None, 1.5, None)],
)
def test_auto_tunes_thresholds_only_where_they_gain(
    trained: Classifier, thresholds: str | None, shift: float, used: bool | None
) -> None:
    classifier, predictions = multi_label(trained, shift)
    result, fitted = with_thresholds(recipe_of(thresholds=thresholds), classifier, predictions)
    assert (fitted is None) == (used is None)
    if fitted is None:
        assert result.thresholds is None
        return
    assert fitted.used == used
    assert fitted.gain is not None
    assert fitted.gain.value is not None
    assert ("would gain nothing" in fitted.text(200)) == (not used)
    if used:
        assert result.thresholds == tuple(fitted.values.values())
    else:
        assert (result.thresholds, fitted.gain.value <= 0) == (None, True)
    assert (fitted.gain.value > 0.02) == (shift > 0)


def test_thresholds_are_tuned_on_calibrated_probabilities(trained: Classifier) -> None:
    classifier, predictions = multi_label(trained, 1.5)
    values = []
    for temperature in (1.0, 4.0):
        result, _ = with_thresholds(
            recipe_of(thresholds="f1"), replace(classifier, temperature=temperature), predictions
        )
        assert result.thresholds is not None
        values.append(np.log([value / (1 - value) for value in result.thresholds if value is not None]))
    np.testing.assert_allclose(values[0], 4 * values[1], atol=1e-9)


def test_thresholds_of_the_recipe_need_no_validation_rows(trained: Classifier) -> None:
    classifier, _ = multi_label(trained, 0.0)
    first, *others = classifier.label_names
    result, fitted = with_thresholds(recipe_of(thresholds={first: 0.2}), classifier, None)
    assert result.thresholds == (0.2, *[0.5] * len(others))
    assert fitted is not None
    assert fitted.text(0) == f"Thresholds from the recipe: {first} 0.2."
    assert with_thresholds(recipe_of(thresholds=0.3), classifier, None)[0].thresholds == (0.3,) * (1 + len(others))
    assert with_thresholds(recipe_of(), classifier, None) == (classifier, None)  # auto, without validation rows
    classifier.base.config.problem_type = "single_label_classification"
    single = recipe_of("single_label_classification", thresholds=0.3, threshold_label=first)
    assert with_thresholds(single, classifier, None)[0].thresholds == (0.3, *[None] * len(others))


def test_one_label_per_row_has_no_thresholds_unless_a_label_is_named() -> None:
    assert tunes_thresholds(recipe_of())
    assert not tunes_thresholds(recipe_of("single_label_classification"))
    assert tunes_thresholds(recipe_of("single_label_classification", threshold_label="a"))
    assert not tunes_thresholds(recipe_of("regression"))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"thresholds": {"aa": 0.3}}, "outputs.thresholds: aa is not a label; the labels are a, b"),
        (
            {"thresholds": "f1", "threshold_label": "c"},
            "outputs.threshold_label: c is not a label; the labels are a, b",
        ),
    ],
)
def test_an_unknown_label_is_reported_before_training(outputs: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_threshold_labels(recipe_of("single_label_classification", **outputs), ["a", "b"])
    check_threshold_labels(recipe_of(thresholds={"recall": 0.5}), ["a", "b"])
