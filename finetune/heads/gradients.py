"""Importance from gradients of the loss by the gates.

g is one row's gradient of its own loss by its gates; see `gate_gradients`.

    N rows, B batch, L layers, H heads
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finetune.heads.estimate import Estimate, layer_normalized, mean_over_rows
from finetune.heads.gated_forward import GatedRows, gate_gradients, row_losses


def gradient(sample: GatedRows) -> Estimate:
    """Return E|g| of every head.

    Michel, Levy and Neubig 2019, equation 5, with the absolute value taken a row, as the equation says: public
    code takes it a batch, which lets rows cancel, or sums running totals.
    """
    return mean_over_rows(np.abs(gate_gradients(sample)))


def gradient_layer_norm(sample: GatedRows) -> Estimate:
    """Return E|g|, each layer divided by its Euclidean norm (Michel, Levy and Neubig 2019, section 4.1)."""
    return layer_normalized(gradient(sample))


def fisher(sample: GatedRows) -> Estimate:
    """Return E g^2, the diagonal of the empirical Fisher information of the gates, a row at a time.

    Kwon et al. 2022; their code squares the mean of a batch.
    """
    return mean_over_rows(gate_gradients(sample).astype(np.float64) ** 2)


def integrated_gradients(sample: GatedRows, steps: int, *, seed: int = 0) -> Estimate:
    """Return each head's share of what all heads together take off the loss, L(0) - L(1).

    -integral over a from 0 to 1 of E g(a): the gates of all heads go from 0 to 1 together (Sundararajan et al.
    2017; as a game between heads the Aumann-Shapley value). The shares sum to L(0) - L(1) but for the error of
    the integral, which the note tells.

    Args:
        steps: passes over the rows. In each, every row has its own a, drawn evenly from the step's part of 0 to 1.
    """
    parts = -path_gradients(sample, sample.gates(), steps, seed=seed)
    drop = row_losses(sample, 0 * sample.gates()).mean() - row_losses(sample, sample.gates()).mean()
    total = float(np.nansum(parts.mean(0)))
    note = f"the shares sum to {total:.4f}, and all heads together take {drop:.4f} off the loss"
    return mean_over_rows(parts, note)


def path_gradients(sample: GatedRows, gates: Tensor, steps: int, *, seed: int = 0) -> np.ndarray:
    """Return the mean over a of each row's gradient at a x gates, times the gates: (N, L, H).

    Rows take turns: in step k of K, the n-th of N rows in random order has a = (k + (n + u) / N) / K with u
    uniform, so that the mean over rows is that of a finer grid than any row alone has.

    Args:
        gates: (L, H), the end of the path that starts at 0.
    """
    rng, rows = np.random.default_rng(seed), len(sample)
    total = np.zeros((rows, *gates.shape))
    for step in range(steps):
        place = (step + (rng.permutation(rows) + rng.random(rows)) / rows) / steps  # (N,)
        at = torch.as_tensor(place, dtype=gates.dtype, device=gates.device)[:, None, None] * gates  # (N, L, H)
        total += gate_gradients(sample, at) / steps
    scaled: np.ndarray = total * gates.cpu().numpy()
    return scaled
