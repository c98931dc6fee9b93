"""Probabilities of training rows by linear models that have not seen the labels of these rows.

N rows, C classes, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from finetune.data.text_keys import fold_texts
from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.baseline_models import fit_tfidf_probabilities
from finetune.evaluation.probe import fit_probe
from finetune.models.outputs import OutputRules

FOLDS = 5

Predict = Callable[[np.ndarray], np.ndarray]  # positions of rows (N,) -> probabilities (N, C)


def cross_validated_probabilities(
    rows: EncodedSplit, states: np.ndarray | None, fit_rows: np.ndarray, num_labels: int, seed: int
) -> np.ndarray | None:
    """Return the probabilities of each row by models fitted to rows of other folds, (N, C); None if none can be fitted.

    They are the mean of two linear models, on pooled states and on TF-IDF features. With 5 % of the labels of TREC
    replaced, 0.82 of as many rows with the lowest probability of their label were replaced ones, and 0.72 with either
    model alone. A label that no row of the other folds has cannot be predicted; where a row has it, the probability
    is 1.

    Args:
        states: pooled states of the rows, (N, E); None: only the model on TF-IDF features.
        fit_rows: positions of the rows to which the models are fitted; the other rows are only predicted.
    """
    labels, folds = rows.labels, text_folds(rows, seed)
    result = np.zeros((len(rows), num_labels), np.float32)
    for fold in np.unique(folds):
        fitted, predicted = fit_rows[folds[fit_rows] != fold], np.flatnonzero(folds == fold)
        models = list(_fitted(rows, states, fitted, num_labels, seed))
        if not models:
            return None
        values = sum(model(predicted) for model in models) / len(models)
        own = labels[predicted]
        if labels.ndim > 1:
            unseen = (labels[fitted].sum(axis=0) == 0) & (own == 1)
            result[predicted] = np.where(unseen, 1.0, values)
        else:
            is_seen = np.isin(own, labels[fitted])
            result[predicted] = np.where(is_seen[:, None], values, np.eye(num_labels)[own])
    return result


def text_folds(rows: EncodedSplit, seed: int) -> np.ndarray:
    """Return the fold of each row, 0 to FOLDS - 1, (N,). Rows with the same text (see `fold_texts`) are in one fold."""
    table = rows.texts.with_format("arrow")[:]
    folded = [fold_texts(column.combine_chunks()).to_numpy(zero_copy_only=False) for column in table.columns]
    texts = ["\x1f".join(pair) for pair in zip(*folded, strict=True)]
    distinct, indices = np.unique(np.array(texts, object), return_inverse=True)
    folds: np.ndarray = (np.random.default_rng(seed).permutation(len(distinct)) % FOLDS)[indices]
    return folds


def _fitted(
    rows: EncodedSplit, states: np.ndarray | None, fitted: np.ndarray, num_labels: int, seed: int
) -> Iterator[Predict]:
    """Yield the models that can be fitted to these rows."""
    labels = rows.labels[fitted]
    if not len(fitted) or (labels.ndim == 1 and np.ptp(labels) == 0):
        return
    if states is not None:
        kind = "multi_label_classification" if labels.ndim > 1 else "single_label_classification"
        probe = fit_probe(states[fitted], labels, kind, num_labels, seed)
        rules = OutputRules((), kind)
        yield lambda positions: rules.probabilities(probe.logits(states[positions]))
    try:
        yield fit_tfidf_probabilities(rows, fitted, num_labels, seed)
    except ValueError:  # there is no word in the texts
        return
