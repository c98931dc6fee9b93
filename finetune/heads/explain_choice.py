"""The choice of the rows that are explained.

N rows, C classes
"""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch

from finetune.data.tokenization import EncodedSplit
from finetune.heads.analysis import separate_rows
from finetune.heads.explain_scores import predicted_targets, target_scores
from finetune.heads.gated_forward import sample_rows
from finetune.models.losses import decisions, per_example_loss
from finetune.recipe.evaluation_section import HeadImportanceSection

MAX_ROWS = 256  # unless the recipe gives `max_samples`


def rows_to_explain(
    splits: dict[str, EncodedSplit], section: HeadImportanceSection, seed: int
) -> tuple[str, np.ndarray] | None:
    """Return the held-out split and its rows that are explained, at most `max_samples`; None if there is none.

    They are the rows that test the ranking, else those that rank the heads, else rows of the first held-out split.
    Training rows are not explained: `predictions.parquet` does not contain them.
    """
    ranking_rows, test_rows = separate_rows(splits, section, seed)
    analyzed = [(section.curve_split, test_rows), (section.split, ranking_rows)]
    rest = [(name, np.arange(len(split))) for name, split in splits.items()]
    for name, rows in [*analyzed, *rest]:
        if name is not None and name != "train" and len(rows):
            return name, rows[sample_rows(len(rows), _max_rows(section), seed)]
    return None


def _max_rows(section: HeadImportanceSection) -> int | None:
    """Return the largest number of rows that are explained; None: no limit."""
    return MAX_ROWS if section.max_samples == "auto" else section.max_samples


def choose_rows(logits: torch.Tensor, labels: np.ndarray, problem_type: str, count: int) -> list[int]:
    """Return the positions of the rows to explain in detail, at most `count`, in ascending order.

    The choice is deterministic: a third are the wrong rows with the highest loss (regression: any rows with the highest
    loss), a third those of which the classifier is least certain (not for regression), and the rest the first rows of
    each label in turn (multi-label: of the most probable label; regression: evenly over the range of the values).

    Args:
        logits: (N, C).
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
    """
    known, regression = torch.as_tensor(labels), problem_type == "regression"
    losses = per_example_loss(logits, known, problem_type).numpy()
    by_loss = np.argsort(-losses, kind="stable").tolist()
    if regression:
        by_value = np.argsort(labels, kind="stable")
        evenly = np.linspace(0, len(labels) - 1, min(count, len(labels))).round().astype(int)
        ranked = [(by_loss, count // 3), (by_value[evenly].tolist(), count)]
    else:
        differs = (decisions(logits, problem_type) != known).numpy().reshape(len(labels), -1)
        wrong = set(np.flatnonzero(differs.any(-1)).tolist())
        targets = predicted_targets(logits)
        multi_label = problem_type == "multi_label_classification"
        margins = logits.abs().amin(-1) if multi_label else target_scores(logits, targets, problem_type)
        least_certain = np.argsort(margins.numpy(), kind="stable").tolist()
        classes = targets.numpy() if multi_label else labels
        errors = [row for row in by_loss if row in wrong]
        ranked = [(errors, count // 3), (least_certain, count // 3), (_labels_in_turn(classes), count)]
    chosen: dict[int, None] = {}
    for rows, share in ranked:
        new = [row for row in rows if row not in chosen]
        chosen |= dict.fromkeys(new[: min(share, count - len(chosen))])
    return sorted(chosen)


def _labels_in_turn(labels: np.ndarray) -> list[int]:
    """Return all positions: the first of each label, then the second of each, and so on."""
    by_label = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    return [row for rows in zip_longest(*by_label) for row in rows if row is not None]
