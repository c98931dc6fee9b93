"""Which rows are held out or kept when a recipe asks for a share or a number of rows.

N rows, C classes
"""

from __future__ import annotations

import numpy as np

from finetune.errors import DataError


def sample_validation_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the row numbers (from 0) to hold out for validation: `share` of the rows, rounded.

    Of ids (N,) each class gives its share as nearly as whole rows allow, and never its last row.

    Raises:
        DataError: there are too few rows to hold any out.
    """
    classes = _classes(labels)
    sizes = np.bincount(classes)
    count = min(int(len(labels) * share + 0.5), int((sizes - 1).sum()))
    if count < 1:
        raise DataError(
            f"data.validation_size: {share:g} of {len(labels)} training rows is no row, or would take the last row of "
            "a class; give more rows, or a file"
        )
    return _draw(classes, _apportioned(count, sizes, np.zeros_like(sizes), sizes - 1), seed)


def sample_training_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the row numbers (from 0) of `count` training rows; of ids (N,) each class keeps its share, one at least.

    Raises:
        DataError: there are more classes than rows to keep.
    """
    classes = _classes(labels)
    sizes = np.bincount(classes)
    if count < len(sizes):
        raise DataError(
            f"data.max_train_samples: {count} is fewer than the {len(sizes)} classes of the training rows; "
            f"give {len(sizes)} or more"
        )
    return _draw(classes, _apportioned(count, sizes, np.ones_like(sizes), sizes), seed)


def _classes(labels: np.ndarray) -> np.ndarray:
    """Return the class of each row, counted from 0, (N,): one for all where rows have sets of labels or values."""
    if labels.ndim > 1 or labels.dtype.kind == "f":
        return np.zeros(len(labels), dtype=np.int64)
    classes: np.ndarray = np.searchsorted(np.unique(labels), labels)
    return classes


def _apportioned(count: int, sizes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return how many of `count` rows each class gives, (C,): in proportion to its size, within its bounds."""
    share = sizes * (count / sizes.sum())
    given: np.ndarray = np.clip(np.floor(share).astype(np.int64), low, high)
    while given.sum() < count:
        given[np.argmax(np.where(given < high, share - given, -np.inf))] += 1
    while given.sum() > count:
        given[np.argmin(np.where(given > low, share - given, np.inf))] -= 1
    return given


def _draw(classes: np.ndarray, given: np.ndarray, seed: int) -> np.ndarray:
    """Return the positions of rows drawn at random, so many of each class, in order."""
    order = np.random.default_rng(seed).permutation(len(classes))
    drawn = [order[classes[order] == kind][:number] for kind, number in enumerate(given)]
    return np.sort(np.concatenate(drawn))
