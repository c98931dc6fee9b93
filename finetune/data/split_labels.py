"""The labels of all splits of a run, encoded by the names that the training rows or the recipe give.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finetune.data.labels import check_training_labels, check_unseen_labels, encode_labels, label_names
from finetune.data.rows import RawSplit


def encode_split_labels(
    raw: Mapping[str, RawSplit],
    column: str,
    problem_type: str,
    declared: Sequence[str] | None,
    suggested: Sequence[str] | None = None,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the label names, and for each split its class ids (N,), 0/1 label sets (N, C) or values (N,).

    Args:
        raw: split name -> rows; one of them is "train".
        declared: the label names of the recipe, or None to take them from the training rows.
        suggested: label names in the preferred order; used if the training rows have exactly these labels.

    Raises:
        DataError: a label is wrong, or does not occur in the training rows.
    """
    train = raw["train"]
    names = label_names(train, column, problem_type, declared, suggested)
    ids_allowed = declared is not None or train.class_names is not None
    check_training_labels(train, column, problem_type, names, ids_allowed=ids_allowed)
    labels = {
        split: encode_labels(rows, column, problem_type, names, ids_allowed=ids_allowed) for split, rows in raw.items()
    }
    if problem_type == "single_label_classification":
        for split, rows in raw.items():
            check_unseen_labels(rows, labels[split], labels["train"], names)
    return names, labels
