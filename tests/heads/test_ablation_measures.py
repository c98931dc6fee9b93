"""Loss, KL divergence and accuracy of an ablation, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.heads.ablation import Ablation

NONE: frozenset[str] = frozenset()


def ablation_of(
    problem_type: str, labels: list[object], logits: list[list[float]], other: list[list[float]]
) -> Ablation:
    """Return an ablation of one layer with one head: logits with the head, and `other` without it."""
    without = np.array(other, dtype=np.float32)[:, None, None]
    return Ablation(np.array(logits, dtype=np.float32), without, np.array(labels), problem_type, NONE)


def test_measures_of_single_labels() -> None:
    result = ablation_of("single_label_classification", [0, 1, 1], [[0, 0], [0, 1], [2, 0]], [[0, 1], [1, 0], [0, 3]])
    p = [np.exp(z) / np.exp(z).sum() for z in np.array([[0, 0], [0, 1], [2, 0]], dtype=float)]
    q = [np.exp(z) / np.exp(z).sum() for z in np.array([[0, 1], [1, 0], [0, 3]], dtype=float)]
    loss = [np.log(a[label] / b[label]) for a, b, label in zip(p, q, [0, 1, 1], strict=True)]
    kl = [(a * np.log(a / b)).sum() for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(result.loss().ravel(), loss, atol=1e-6)
    np.testing.assert_allclose(result.kl().ravel(), kl, atol=1e-12)
    assert result.accuracy().ravel().tolist() == [1, 1, -1]


def test_measures_of_label_sets() -> None:
    logits, other = np.array([[1.0, -1.0], [2.0, 3.0]]), np.array([[1.0, 1.0], [-1.0, 3.0]])
    labels = [[1, 0], [0, 1]]
    result = ablation_of("multi_label_classification", labels, logits.tolist(), other.tolist())  # type: ignore[arg-type]
    p, q, y = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-other)), np.array(labels)
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)
    loss = (np.log(np.where(y == 1, p, 1 - p)) - np.log(np.where(y == 1, q, 1 - q))).mean(-1)
    np.testing.assert_allclose(result.kl().ravel(), kl, atol=1e-7)  # logits are float32
    np.testing.assert_allclose(result.loss().ravel(), loss, atol=1e-6)
    assert result.accuracy().ravel().tolist() == [1, -1]


def test_measures_of_values() -> None:
    result = ablation_of("regression", [1.0, 2.0], [[1.5], [2.0]], [[3.0], [0.0]])
    np.testing.assert_allclose(result.loss().ravel(), [4 - 0.25, 4 - 0])
    np.testing.assert_allclose(result.kl().ravel(), [2.25, 4])
    with pytest.raises(ModelError, match=r"accuracy needs classes.*regression; use loss or kl"):
        result.accuracy()
