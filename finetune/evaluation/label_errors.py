"""Rows whose label is probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021) with cleanlab.

It needs probabilities from a model that has not seen the label of the row: those of a trained classifier for rows that
were held out, and those of cross-validation for the training rows.

N rows, C classes, M rows with a likely label error
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LikelyErrors:
    """Rows whose label is probably wrong, the most likely errors first.

    Attributes:
        rows: their positions, (M,).
        suggested: suggested labels, in the form of the labels: class ids (M,) or 0/1 label sets (M, C).
        label_probabilities: probability of the label of each row, by which they are sorted, (M,). In a row with a label
            set, that of its least probable part: that the row has, or does not have, one of the labels.
        suggested_probabilities: probability of the suggested label, (M,).
    """

    rows: np.ndarray
    suggested: np.ndarray
    label_probabilities: np.ndarray
    suggested_probabilities: np.ndarray


def find_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> LikelyErrors:
    """Return the rows whose label is probably wrong.

    cleanlab estimates how many labels are wrong (confident joint); the errors are that many rows, those with the lowest
    probability of their label (self-confidence), of which the most probable label is another one.

    Args:
        labels: class ids (N,), or 0/1 label sets (N, C), where each label is a problem of its own with the classes no
            and yes.
        probabilities: (N, C), out of sample.
    """
    if labels.ndim > 1:
        return _errors_of_sets(labels, probabilities)
    own = probabilities[np.arange(len(labels)), labels]
    rows = np.flatnonzero(_flagged(labels, probabilities))
    rows = rows[np.argsort(own[rows], kind="stable")]
    return LikelyErrors(rows, probabilities[rows].argmax(axis=1), own[rows], probabilities[rows].max(axis=1))


def _errors_of_sets(labels: np.ndarray, probabilities: np.ndarray) -> LikelyErrors:
    """Return the errors in label sets (N, C); each label that is flagged in a row is reversed in the suggestion."""
    flagged = np.zeros(labels.shape, bool)
    for label in range(labels.shape[1]):
        positive = probabilities[:, label]
        flagged[:, label] = _flagged(labels[:, label], np.stack([1 - positive, positive], axis=1))
    own = np.where(flagged, np.where(labels == 1, probabilities, 1 - probabilities), 1.0)
    lowest = own.min(axis=1)
    rows = np.flatnonzero(flagged.any(axis=1))
    rows = rows[np.argsort(lowest[rows], kind="stable")]
    suggested = np.where(flagged[rows], 1 - labels[rows], labels[rows])
    return LikelyErrors(rows, suggested, lowest[rows], 1 - lowest[rows])


def _flagged(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return which class ids (N,) are probably wrong, (N,)."""
    if len(np.unique(labels)) < 2:
        return np.zeros(len(labels), bool)
    from cleanlab.filter import find_label_issues  # importing it takes a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example that every row of a class would be removed
        flagged = find_label_issues(
            labels.astype(np.int64), probabilities.astype(np.float64), filter_by="low_self_confidence", n_jobs=1
        )
    return np.asarray(flagged & (probabilities.argmax(axis=1) != labels))
