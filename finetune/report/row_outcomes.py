"""Which predicted rows are wrong, and which probably have the wrong label.

N rows, K labels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK = 100_000  # rows at a time, which bounds the memory


def is_text(column_type: pa.DataType) -> bool:
    """Return whether a column contains texts."""
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))


def label_ids(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return label names as positions in `names`, (N,)."""
    found = pc.index_in(column, value_set=pa.array(names, column.type))
    return np.asarray(found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy())


def label_sets(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return lists of label names as (N, K) booleans."""
    sizes = pc.list_value_length(column).to_numpy()
    sets = np.zeros((len(column), len(names)), bool)
    sets[np.repeat(np.arange(len(column)), sizes), label_ids(pc.list_flatten(column), names)] = True
    return sets


def wrong_rows(table: pa.Table) -> np.ndarray:
    """Return which rows were predicted wrongly, (N,): in multi-label rows, any label; in regression no row."""
    label, predicted = table["label"], table["predicted"]
    if pa.types.is_floating(label.type):
        return np.zeros(table.num_rows, bool)
    if is_text(label.type):
        return np.array(pc.not_equal(label, predicted).to_numpy())
    names = sorted({name for each in (label, predicted) for name in pc.list_flatten(each).unique().to_pylist()})
    sets = [label_sets(each, names) for each in (label, predicted)]
    return np.asarray((sets[0] != sets[1]).any(axis=1))


def likely_label_errors(labels: np.ndarray, probabilities: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return the positions of rows whose label is probably wrong, the most likely errors first.

    Confident learning, Northcutt, Jiang and Chuang 2021: a label is confident in a row if its probability is at least
    the mean probability of that label in the rows that have it (of the same split). A row is a likely error if its
    most probable confident label is not its own and has a higher probability than its own. The order is that of the
    difference between the two probabilities.

    Args:
        labels: ids (N,), or label sets (N, K), where each label is a problem of its own with the classes yes and no.
        probabilities: (N, K).
        splits: the split of each row, (N,): the rows that were trained on would make the thresholds too high.
    """
    margins = np.full(len(labels), np.inf, np.float32)
    for split in np.unique(splits):
        rows = np.flatnonzero(splits == split)
        if labels.ndim == 1:
            margins[rows] = _margins(labels[rows], probabilities[rows])
            continue
        for label in range(probabilities.shape[1]):
            positive = probabilities[rows, label]
            binary = _margins(labels[rows, label].astype(int), np.stack([1 - positive, positive], axis=1))
            margins[rows] = np.minimum(margins[rows], binary)
    return np.argsort(margins, kind="stable")[: np.count_nonzero(margins < 0)].astype(np.uint32)


def _margins(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of the label minus that of the best other confident label; infinity if there is none."""
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=own, minlength=probabilities.shape[1])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    margins = np.full(len(labels), np.inf, np.float32)
    for start in range(0, len(labels), _BLOCK):
        block = slice(start, start + _BLOCK)
        confident = np.where(probabilities[block] >= thresholds, probabilities[block], -np.inf)
        best = confident.argmax(axis=1)
        other = best != labels[block]
        margins[block] = np.where(other, own[block] - confident.max(axis=1), np.inf)
    return np.where(margins < 0, margins, np.inf)
