"""Head importance from gradients of the loss with respect to the gates.

g is the gradient of one row's loss with respect to its gates, see `gate_gradients`; E is the mean over rows.

    N rows, L layers, H heads
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finetune.heads.gated_forward import GatedRows, gate_gradients, row_losses
from finetune.heads.importance_estimate import Estimate, layer_normalized, mean_over_rows
from finetune.progress import stage


def gradient(sample: GatedRows) -> Estimate:
    """Return E|g| of every head, (L, H), in units of the loss.

    Michel, Levy and Neubig 2019, equation 5, with the absolute value taken per row, as in the equation. Public code
    takes it per batch, where rows cancel, or sums running totals.
    """
    return mean_over_rows(np.abs(gate_gradients(sample)))


def gradient_layer_norm(sample: GatedRows) -> Estimate:
    """Return E|g|, divided by the Euclidean norm of each layer (Michel, Levy and Neubig 2019, section 4.1)."""
    return layer_normalized(gradient(sample))


def fisher(sample: GatedRows) -> Estimate:
    """Return E g^2, (L, H): the diagonal of the empirical Fisher information of the gates.

    Kwon et al. 2022; their code squares the mean of a batch, this one the gradient of each row.
    """
    return mean_over_rows(gate_gradients(sample).astype(np.float64) ** 2)


def integrated_gradients(sample: GatedRows, steps: int, *, seed: int = 0) -> Estimate:
    """Return the share of each head in L(0) - L(1), the loss without any head minus the loss with all heads.

    The share is -integral over a from 0 to 1 of E g(a), where a is the common gate of all heads (Sundararajan, Taly
    and Yan 2017, equation 1; as a cooperative game of the heads, the Aumann-Shapley value). The shares sum to
    L(0) - L(1) up to the error of the numerical integral; both numbers are in the note.

    Args:
        steps: passes over the rows. In each pass, every row has its own a, drawn uniformly from its part of 0 to 1.
    """
    shares = -path_gradients(sample, sample.gates(), steps, seed=seed)
    drop = row_losses(sample, 0 * sample.gates()).mean() - row_losses(sample, sample.gates()).mean()
    total = float(np.nansum(shares.mean(0)))
    note = f"the shares sum to {total:.4f}; the loss without any head minus the loss with all heads is {drop:.4f}"
    return mean_over_rows(shares, note)


def path_gradients(sample: GatedRows, gates: Tensor, steps: int, *, seed: int = 0) -> np.ndarray:
    """Return the mean over a of each row's gradient at a x gates, times the gates: (N, L, H).

    The values of a are stratified over rows: in step k of K, the n-th of N rows in random order has
    a = (k + (n + u) / N) / K with u uniform, so the mean over rows integrates on a finer grid than any single row.

    Args:
        gates: (L, H), the end of the path that starts at 0.
    """
    rng, num_rows = np.random.default_rng(seed), len(sample)
    total = np.zeros((num_rows, *gates.shape))
    with stage("integration steps", total=steps) as progress:
        for step in range(steps):
            a = (step + (rng.permutation(num_rows) + rng.random(num_rows)) / num_rows) / steps  # (N,)
            point = torch.as_tensor(a, dtype=gates.dtype, device=gates.device)[:, None, None] * gates  # (N, L, H)
            total += gate_gradients(sample, point) / steps
            progress.advance()
    scaled: np.ndarray = total * gates.cpu().numpy()
    return scaled
