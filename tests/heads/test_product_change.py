"""Change and effective rank of a product of two factors, against the dense computation."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.heads.product_change import effective_rank, product_change


def dense_change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the relative change and the effective rank of the difference, computed from the full (E, E) matrices."""
    singular = np.linalg.svd(after - before, compute_uv=False)
    shares = singular / singular.sum()
    entropy = -sum(p * np.log(p) for p in shares if p > 1e-9)
    return float(np.linalg.norm(after - before) / np.linalg.norm(before)), float(np.exp(entropy))


def test_products_from_factors_by_hand() -> None:
    rng = np.random.default_rng(0)
    a0, a1, b0, b1 = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    result = product_change((a0, b0), (a1, b1))
    assert (result.relative, result.effective_rank) == pytest.approx(dense_change(a0 @ b0, a1 @ b1), rel=1e-10)
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.zeros(4)) == 0
    assert product_change((0 * a0, b0), (a1, b0)).relative is None
    tiny = product_change((a0, b0), (a0 * (1 + 1e-12), b0)).relative
    assert tiny == pytest.approx(1e-12, rel=1e-3)  # not computed as the difference of two large numbers
