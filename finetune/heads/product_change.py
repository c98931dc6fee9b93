"""The change of a product of two matrices, in float64, without computing the product.

A head reads and writes states of width E through a space of width D: W_V W_O and W_Q W_K^T are (E, E) of rank D.
The difference of two such products, A1 B1 - A0 B0, has rank 2 D at most:

    A1 B1 - A0 B0 = A1 (B1 - B0) + (A1 - A0) B0 = [A1, A1 - A0] [B1 - B0; B0]

With the QR factors of both stacks, A = Q_A R_A and B^T = Q_B R_B, its singular values are those of the core
R_A R_B^T, which is (2 D, 2 D). In this form unchanged factors give exactly 0, and a small change is not computed as
the difference of two large numbers.

    E hidden size, D head width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProductChange:
    """The change of one product.

    Attributes:
        relative: Frobenius norm of the change, divided by that of the product before; None if that is 0.
        effective_rank: exp of the entropy of the normalized singular values of the change (Roy and Vetterli 2007): k
            for k equal singular values; 0 if nothing changed.
    """

    relative: float | None
    effective_rank: float


def product_change(before: tuple[Array, Array], after: tuple[Array, Array]) -> ProductChange:
    """Return the change of A B, from its factors before and after: A (E, D) and B (D, E)."""
    (a0, b0), (a1, b1) = before, after
    singular = _core_singular_values(np.hstack([a1, a1 - a0]), np.vstack([b1 - b0, b0]))  # (2 D,)
    norm_before = float(np.linalg.norm(_core_singular_values(a0, b0)))
    return ProductChange(
        relative=float(np.linalg.norm(singular)) / norm_before if norm_before else None,
        effective_rank=effective_rank(singular),
    )


def effective_rank(singular: Array) -> float:
    """Return exp(-sum p log p), where p are the singular values divided by their sum; 0 if all are 0."""
    total = singular.sum()
    if total == 0:
        return 0.0
    shares = singular[singular > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _core_singular_values(a: Array, b: Array) -> Array:
    """Return the K singular values of A B that can be nonzero, from A (E, K) and B (K, E)."""
    left, right = (np.asarray(np.linalg.qr(stack, mode="r")) for stack in (a, b.T))
    singular: Array = np.linalg.svd(left @ right.T, compute_uv=False)
    return singular
