"""Fit how logits become probabilities and labels, to the validation rows, after training and before the model is saved.

Each step takes the predictions of the step before: first the temperature, then all that depends on probabilities.
"""

from __future__ import annotations

from dataclasses import replace

from finetune.evaluation.prediction import Predictions, predict
from finetune.evaluation.temperature import fit_temperature
from finetune.models.classifier import Classifier
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.fit_thresholds import with_thresholds
from finetune.progress import stage
from finetune.recipe.schema import Recipe
from finetune.runs.outputs import FittedOutputs, TemperatureFit


def fit_outputs(
    context: RunContext, inputs: RunInputs, classifier: Classifier
) -> tuple[Classifier, FittedOutputs | None]:
    """Return the classifier with the fitted rules, and the record of them; None without validation rows.

    All processes take part, because the validation rows are scored once.
    """
    recipe, validation = context.recipe, inputs.splits.get("validation")
    temperature = recipe.outputs.temperature
    classifier = replace(classifier, temperature=1.0 if temperature in (None, "auto") else float(temperature))
    if validation is None:
        classifier, thresholds = with_thresholds(recipe, classifier, None)
        fitted = None if thresholds is None else FittedOutputs(0, classifier.temperature, thresholds=thresholds)
        return classifier, fitted
    batch_size = recipe.evaluation.per_device_eval_batch_size
    predictions = predict(classifier, validation, batch_size=batch_size, accelerator=context.accelerator)
    with stage("fitting the outputs"):
        fit = _temperature_fit(recipe, predictions)
        if fit is not None and fit.applied:
            classifier = replace(classifier, temperature=fit.value)
        predictions = replace(predictions, rules=classifier.rules)
        if predictions.problem_type != "multi_label_classification":
            logits = predictions.logits.numpy()
            rules = classifier.rules.with_scores_of(logits, predictions.labels, seed=recipe.seed)
            classifier = replace(classifier, conformal=rules.conformal)
        classifier, thresholds = with_thresholds(recipe, classifier, predictions)
    scores = classifier.conformal
    conformal_rows = 0 if scores is None else sum(map(len, scores.errors))
    return classifier, FittedOutputs(len(predictions.labels), classifier.temperature, fit, conformal_rows, thresholds)


def _temperature_fit(recipe: Recipe, predictions: Predictions) -> TemperatureFit | None:
    """Return the temperature of the validation rows, None if the recipe does not leave it to them."""
    if recipe.outputs.temperature != "auto" or predictions.problem_type == "regression":
        return None
    logits, samples = predictions.logits.numpy(), recipe.evaluation.bootstrap_samples
    return fit_temperature(predictions.rules, logits, predictions.labels, samples=samples, seed=recipe.seed)
