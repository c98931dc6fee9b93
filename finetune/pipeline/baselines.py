"""Fit the baselines of a run, and compare its classifier with them on every held-out split."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch

from finetune.data.holdout import sample_training_rows
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results, local_main_process_first
from finetune.errors import FinetuneError
from finetune.evaluation.baseline_comparison import ComparisonSettings, compare_with_baselines, compared_metric
from finetune.evaluation.baseline_models import Baseline, constant_prediction, fit_tfidf
from finetune.evaluation.prediction import Predictions
from finetune.evaluation.predictions_file import read_baseline_predictions
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.losses import decisions
from finetune.models.pooled_states import Pooling, pooled_states
from finetune.models.pretrained import load_tokenizer
from finetune.pipeline.build_model import checkpoint_source
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.linear_probe import fit_linear_probe, probe_rows
from finetune.progress import stage
from finetune.recipe.schema import Recipe
from finetune.runs.baselines import BaselineComparison, BaselineInfo, SplitComparison
from finetune.runs.run_files import read_baselines

Encoder = Callable[[], Classifier | None]  # see `untrained_encoder`

MAX_TFIDF_ROWS = 5_000  # training rows that TF-IDF is fitted on, drawn at random; more rows would take too long
_PART = 20_000  # rows whose pooled states are in memory at a time
_NO_ENCODER = "the encoder has no pretrained weights"
_THRESHOLDS_NOTE = "The classifier has thresholds, and the baselines predict the most probable label."


@dataclass(frozen=True)
class Baselines:
    """The baselines of a run.

    Attributes:
        fitted: by name, with their predictions for every held-out split.
        skipped: why others are missing, by name.
        seconds: the time that fitting and predicting took.
    """

    fitted: dict[str, Baseline] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def fit_baselines(context: RunContext, inputs: RunInputs, encoder: Encoder) -> Baselines:
    """Return the baselines of the recipe, fitted on the training rows. The first run of a series fits them for all.

    Args:
        encoder: see `untrained_encoder`.
    """
    recipe = context.recipe
    fit = partial(_fit, context, inputs, recipe.evaluation.baselines or [], encoder)
    return context.shared.once_per_encoder("baselines", fit, recipe)


def untrained_encoder(context: RunContext, inputs: RunInputs) -> Encoder:
    """Return a function that returns a classifier with the encoder as it was before training, for its pooled states.

    The first call loads the checkpoint. The function returns None if the encoder had random weights, and raises
    ModelError if the checkpoint cannot be loaded. It must be called on every process. The classifier stays in memory
    as long as the function.
    """
    return cache(partial(_pretrained_encoder, context, inputs))


def baseline_pooling(recipe: Recipe) -> Pooling:
    """Return the pooling of the states on which the linear models are fitted."""
    return "cls" if recipe.model.pooling == "cls" else "mean"


def stored_or_fitted_baselines(context: RunContext, inputs: RunInputs, encoder: Encoder) -> Baselines:
    """Return the baselines of a finished run; those whose predictions for these rows are not stored are fitted again.

    Args:
        encoder: see `untrained_encoder`.
    """
    names = context.recipe.evaluation.baselines or []

    def read() -> Baselines:
        """Return the stored baselines whose predictions are for these rows."""
        previous = read_baselines(context.folder) if context.accelerator.is_main_process else None
        if previous is None:
            return Baselines()
        splits, label_names = inputs.held_out_splits(), inputs.classifier.label_names
        stored = read_baseline_predictions(context.folder, splits, label_names)
        fitted = {
            name: Baseline(info.description, info.training_rows, stored[name])
            for name, info in previous.fitted.items()
            if name in names and name in stored
        }
        return Baselines(fitted, seconds=previous.seconds)

    stored = gather_results(context.accelerator, read)[0]
    missing = [name for name in names if name not in stored.fitted]
    if not missing:
        return stored
    fitted = _fit(context, inputs, missing, encoder)
    by_name = stored.fitted | fitted.fitted
    seconds = max(stored.seconds, fitted.seconds)
    return Baselines({name: by_name[name] for name in names if name in by_name}, fitted.skipped, seconds)


def compare_baselines(
    context: RunContext, baselines: Baselines, predictions: Mapping[str, Predictions], label_names: Sequence[str]
) -> BaselineComparison | None:
    """Return the comparison of the classifier with its baselines, or None if there is nothing to compare."""
    recipe = context.recipe
    if not (baselines.fitted or baselines.skipped) or not predictions:
        return None
    metric = compared_metric(recipe.best_metric(), recipe.metric_names(), recipe.task.problem_type)
    settings = ComparisonSettings(
        recipe.metric_names(), metric, len(label_names), recipe.evaluation.bootstrap_samples, recipe.seed
    )
    splits: dict[str, SplitComparison] = {
        split: compare_with_baselines(result, split, baselines.fitted, settings)
        for split, result in predictions.items()
    }
    infos = {name: BaselineInfo(fit.description, fit.training_rows) for name, fit in baselines.fitted.items()}
    # With several labels per row, the descriptions of the baselines have their threshold.
    has_one_label = recipe.task.problem_type == "single_label_classification"
    has_thresholds = any(result.rules.thresholds is not None for result in predictions.values())
    note = _THRESHOLDS_NOTE if has_one_label and has_thresholds else ""
    return BaselineComparison(metric, infos, baselines.skipped, baselines.seconds, splits, note)


def _fit(context: RunContext, inputs: RunInputs, names: Sequence[str], encoder: Encoder) -> Baselines:
    """Return these baselines, fitted; see `untrained_encoder` for `encoder`."""
    held_out = inputs.held_out_splits()
    if not names or not held_out:
        return Baselines()
    started = time.perf_counter()
    skipped: dict[str, str] = {}
    fitted: dict[str, Baseline] = {}
    with stage("fitting the baselines"):

        def fit_on_texts() -> tuple[dict[str, Baseline], dict[str, str]]:
            return _fit_on_texts(context, inputs, names) if context.accelerator.is_main_process else ({}, {})

        fitted, skipped = gather_results(context.accelerator, fit_on_texts)[0]
        if "frozen_encoder" in names:
            try:
                classifier = encoder()
                if classifier is None:
                    skipped["frozen_encoder"] = _NO_ENCODER
                else:
                    fitted["frozen_encoder"] = _fit_on_states(context, inputs, classifier)
            except FinetuneError as error:  # the same on every process
                skipped["frozen_encoder"] = " ".join(str(error).split())
    seconds = time.perf_counter() - started
    if fitted:
        context.print_line(f"Baselines fitted and scored in {seconds:.1f} s: {', '.join(fitted)}.")
    for name, reason in skipped.items():
        if reason != _NO_ENCODER or not fitted:  # a new model has no such baseline; the others are compared
            context.print_line(f"[yellow]The baseline {name} was skipped: {reason}.[/]")
    return Baselines({name: fitted[name] for name in names if name in fitted}, skipped, seconds)


def _fit_on_texts(
    context: RunContext, inputs: RunInputs, names: Sequence[str]
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Return the baselines that need no encoder, and why one of them is missing."""
    train, held_out = inputs.splits["train"], inputs.held_out_splits()
    fitted, skipped = {}, {}
    if "majority" in names:
        constant, description = constant_prediction(train.labels, inputs.classifier.label_names)
        predictions = {
            split: np.broadcast_to(constant, (len(rows), *constant.shape)).copy() for split, rows in held_out.items()
        }
        fitted["majority"] = Baseline(description, len(train), predictions)
    if "tfidf" in names:
        limit = max(MAX_TFIDF_ROWS, len(inputs.classifier.label_names))
        rows = np.arange(len(train))
        if len(train) > limit:
            rows = sample_training_rows(train.labels, limit, context.recipe.rows_seed())
        try:
            predict = fit_tfidf(train, rows, context.recipe.rows_seed())
            predictions = {split: predict(texts) for split, texts in held_out.items()}
            fitted["tfidf"] = Baseline(_description("TF-IDF", inputs, len(rows)), len(rows), predictions)
        except ValueError as error:
            skipped["tfidf"] = f"scikit-learn cannot fit it to these texts ({error})"
    return fitted, skipped


def _fit_on_states(context: RunContext, inputs: RunInputs, classifier: Classifier) -> Baseline:
    """Return the linear model on the encoder's pooled states. Every process computes a part of the states."""
    recipe, train, accelerator = context.recipe, inputs.splits["train"], context.accelerator
    pooling = baseline_pooling(recipe)
    # The probe of a run with `reinit_layers` was fitted to the states of another encoder.
    probe = None if recipe.training.reinit_layers else inputs.probe
    probe = probe or fit_linear_probe(context, classifier, train, pooling)

    def predict(split: EncodedSplit) -> np.ndarray:
        """Return the predicted labels of the rows."""
        batch_size = recipe.evaluation.per_device_eval_batch_size
        states = pooled_states(classifier, split, pooling=pooling, batch_size=batch_size, accelerator=accelerator)
        return decisions(torch.from_numpy(probe.logits(states)), classifier.problem_type).numpy()

    predictions = {}
    for name, split in inputs.held_out_splits().items():
        parts = [np.arange(start, min(start + _PART, len(split))) for start in range(0, len(split), _PART)]
        predictions[name] = np.concatenate([predict(split.select(part)) for part in parts])
    rows = len(probe_rows(train, len(classifier.label_names), recipe.rows_seed()))
    return Baseline(_description("frozen encoder", inputs, rows), rows, predictions)


def _description(features: str, inputs: RunInputs, rows: int) -> str:
    """Return what a linear model is fitted to, such as "TF-IDF + logistic regression on 5,000 of 6,920 rows"."""
    problem_type = inputs.classifier.problem_type
    model = "ridge" if problem_type == "regression" else "logistic"
    total = len(inputs.splits["train"])
    part = f" on {rows:,} of {total:,} rows" if rows < total else ""
    at = (
        " at threshold 0.5" if problem_type == "multi_label_classification" else ""
    )  # also if those of the model differ
    return f"{features} + {model} regression{part}{at}"


def _pretrained_encoder(context: RunContext, inputs: RunInputs) -> Classifier | None:
    """Return a classifier with the encoder as it was before training; None if it had random weights.

    Weights that the checkpoint lacks (`model.allow_missing_weights`) are drawn as at the start of the run.

    Raises:
        ModelError: the checkpoint cannot be loaded.
    """
    model, trained = context.recipe.model, inputs.classifier
    if model.model_name_or_path is None:
        return None
    source = checkpoint_source(model)

    def load() -> Classifier:
        with torch.random.fork_rng(devices=[]):  # later random numbers of the run do not change
            torch.default_generator.manual_seed(context.recipe.seed)
            return pretrained_classifier(
                source,
                load_tokenizer(source),
                Labels(trained.label_names, trained.problem_type),
                max_length=trained.max_length,
            )

    return local_main_process_first(context.accelerator, load)
