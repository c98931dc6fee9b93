"""Rows whose label is probably wrong, of the training rows and of the held-out rows of a run.

Held-out rows are judged by the classifier. Training rows, whose labels it has seen, are judged by cross-validation: the
mean probability of two linear models, on the pooled states of the encoder before training and on TF-IDF features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.errors import DataError, FinetuneError
from finetune.evaluation.cross_validation import cross_validated_probabilities
from finetune.evaluation.label_errors import LikelyErrors, find_label_errors
from finetune.evaluation.prediction import Predictions
from finetune.models.classifier import Classifier
from finetune.models.pooled_states import pooled_states
from finetune.pipeline.baselines import Encoder, baseline_pooling
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.linear_probe import probe_positions, probe_states
from finetune.progress import stage
from finetune.recipe.schema import Recipe
from finetune.runs.label_errors import (
    MANY_ERRORS,
    MAX_CHECKED_ROWS,
    MAX_PLAUSIBLE_SHARE,
    MIN_CHECKED_ROWS,
    LabelError,
    read_label_errors,
)


def checks_labels(recipe: Recipe, classifier: Classifier) -> bool:
    """Return whether likely label errors are listed: if the recipe says so, and not in regression."""
    return recipe.evaluation.label_errors and classifier.problem_type != "regression"


def training_label_errors(context: RunContext, inputs: RunInputs, encoder: Encoder) -> list[LabelError]:
    """Return the training rows whose label is probably wrong; nothing in regression or if the recipe says so.

    Args:
        encoder: see `untrained_encoder`.
    """
    rows = len(inputs.splits["train"]) - inputs.summary["train"].label_name_rows
    if not checks_labels(context.recipe, inputs.classifier) or rows < MIN_CHECKED_ROWS:
        return []
    check = partial(_check_training_rows, context, inputs, encoder)
    return context.shared.once_per_encoder("label errors", check, context.recipe)


def stored_or_new_label_errors(context: RunContext, inputs: RunInputs, encoder: Encoder) -> list[LabelError]:
    """Return the likely errors in the training rows of a finished run, from its file if they are of these rows.

    Args:
        encoder: see `untrained_encoder`.
    """

    def read() -> list[LabelError] | None:
        """Return the training rows of the file; None if there is no file or one of them has changed."""
        try:
            stored = read_label_errors(context.folder) if context.accelerator.is_main_process else None
        except DataError:
            stored = None
        if stored is None:
            return None
        train = [error for error in stored if error.split == "train"]
        return train if _are_rows_of(train, inputs.splits["train"], inputs.classifier) else None

    stored = gather_results(context.accelerator, read)[0]
    if stored is not None and checks_labels(context.recipe, inputs.classifier):
        return stored
    return training_label_errors(context, inputs, encoder)


def held_out_label_errors(
    split: str, rows: EncodedSplit, predictions: Predictions, label_names: Sequence[str]
) -> list[LabelError]:
    """Return the rows of a held-out split whose label is probably wrong; the classifier must not have seen them."""
    if len(rows) < MIN_CHECKED_ROWS:
        return []
    if len(rows) > MAX_CHECKED_ROWS:
        drawn = np.sort(np.random.default_rng(0).choice(len(rows), MAX_CHECKED_ROWS, replace=False))
        rows, chosen = rows.select(drawn), torch.from_numpy(drawn)
        predictions = replace(
            predictions,
            logits=predictions.logits[chosen],
            losses=predictions.losses[chosen],
            labels=predictions.labels[drawn],
        )
    return _named(split, rows, find_label_errors(predictions.labels, predictions.probabilities()), label_names)


def _check_training_rows(context: RunContext, inputs: RunInputs, encoder: Encoder) -> list[LabelError]:
    """Return the training rows whose label is probably wrong. Every process computes a part of the states."""
    started, recipe = time.perf_counter(), context.recipe
    split, num_labels, seed = inputs.splits["train"], len(inputs.classifier.label_names), recipe.rows_seed()
    rows = _checked_positions(inputs, seed)
    with stage("looking for label errors"):
        states = _states(context, inputs, rows, encoder)

        def check() -> tuple[int, list[LabelError]]:
            """Return how many rows were checked, and the likely errors, on the main process."""
            if not context.accelerator.is_main_process:
                return 0, []
            checked = split.select(rows)
            fit_rows = np.flatnonzero(np.isin(rows, probe_positions(split.labels, num_labels, seed)))
            judged = cross_validated_probabilities(checked, states, fit_rows, num_labels, seed)
            if judged is None:
                return 0, []
            errors = find_label_errors(checked.labels, judged)
            return len(rows), _named("train", checked, errors, inputs.classifier.label_names)

        count, errors = gather_results(context.accelerator, check)[0]
    seconds = time.perf_counter() - started
    if not count:
        return []
    many = f" {MANY_ERRORS}." if len(errors) > MAX_PLAUSIBLE_SHARE * count else ""
    context.print_line(
        f"Labels of {count:,} training rows checked in {seconds:.1f} s: {len(errors):,} may be wrong.{many}"
    )
    return errors


def _checked_positions(inputs: RunInputs, seed: int) -> np.ndarray:
    """Return the positions of the training rows that are checked, sorted: not those that are names of labels."""
    train = inputs.splits["train"]
    count = len(train) - inputs.summary["train"].label_name_rows
    if count <= MAX_CHECKED_ROWS:
        return np.arange(count)
    fitted = probe_positions(train.labels, len(inputs.classifier.label_names), seed)  # their states are computed anyway
    fitted = fitted[fitted < count]
    others = np.setdiff1d(np.arange(count), fitted)
    drawn = np.random.default_rng(seed).choice(others, MAX_CHECKED_ROWS - len(fitted), replace=False)
    return np.union1d(fitted, drawn)


def _states(context: RunContext, inputs: RunInputs, rows: np.ndarray, encoder: Encoder) -> np.ndarray | None:
    """Return the pooled states of training rows, (N, E); None if the encoder has no pretrained weights."""
    train, pooling = inputs.splits["train"], baseline_pooling(context.recipe)
    try:
        classifier = encoder()
        if classifier is None:
            return None
        fitted = probe_positions(train.labels, len(classifier.label_names), context.recipe.rows_seed())
        states = probe_states(context, classifier, train, pooling)
        rest = np.setdiff1d(rows, fitted)
        batch_size = context.recipe.evaluation.per_device_eval_batch_size
        if len(rest):
            others = pooled_states(
                classifier, train.select(rest), pooling=pooling, batch_size=batch_size, accelerator=context.accelerator
            )
            fitted, states = np.concatenate([fitted, rest]), np.concatenate([states, others])
    except FinetuneError as error:  # the same on every process
        context.print_line(f"[yellow]The labels are checked without the encoder: {' '.join(str(error).split())}.[/]")
        return None
    order = np.argsort(fitted)
    return states[order[np.searchsorted(fitted[order], rows)]]


def _named(split: str, rows: EncodedSplit, errors: LikelyErrors, label_names: Sequence[str]) -> list[LabelError]:
    """Return likely errors with the texts of the rows and the names of the labels."""
    columns = rows.texts.select(errors.rows)[:]
    return [
        LabelError(
            split,
            int(rows.numbers[row]),
            tuple(texts),
            _label_text(np.asarray(rows.labels[row]), label_names),
            _label_text(np.asarray(suggested), label_names),
            float(label_probability),
            float(suggested_probability),
        )
        for row, texts, suggested, label_probability, suggested_probability in zip(
            errors.rows,
            zip(*columns.values(), strict=True),
            errors.suggested,
            errors.label_probabilities,
            errors.suggested_probabilities,
            strict=True,
        )
    ]


def _label_text(label: np.ndarray, names: Sequence[str]) -> str:
    """Return the name of a class id, or the names of a 0/1 label set (C,), joined by a semicolon."""
    return names[int(label)] if label.ndim == 0 else ";".join(names[int(index)] for index in label.nonzero()[0])


def _are_rows_of(errors: Sequence[LabelError], split: EncodedSplit, classifier: Classifier) -> bool:
    """Return whether each error is a row of the split with the same texts and the same label."""
    positions = {int(number): position for position, number in enumerate(split.numbers)}
    if any(error.row not in positions for error in errors):
        return False
    rows = np.array([positions[error.row] for error in errors], dtype=np.int64)
    texts = zip(*split.texts.select(rows)[:].values(), strict=True)
    labels = [_label_text(np.asarray(split.labels[row]), classifier.label_names) for row in rows]
    return [(error.texts, error.label) for error in errors] == list(zip(texts, labels, strict=True))
