"""Candidates for ranking attention heads that are trained: other objectives, starting points and ways to draw gates.

All train one set of scores as `learned_order` does, without folds.

    N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from finetune.data.sampler import plan_scoring
from finetune.heads.gated_forward import GatedRows
from finetune.heads.learned import learned_gates
from finetune.heads.learned_order import draw_masks
from tests.benchmarks.head_candidates import (
    Ranker,
    drawn,
    gate_passes,
    gradient_layer_norm,
    multilinear,
    row_cost,
)

NOISE, SHARES = 0.3, (0.05, 0.95)
# Scores (L, H), number of rows and random numbers -> gates (N, L, H) and the weights of their gradients.
Draw = Callable[[Tensor, int, torch.Generator], tuple[Tensor, Tensor]]


def heads_kept(scores: Tensor, num_rows: int, noise: torch.Generator) -> Tensor:
    """Return the number of heads that each row keeps, (N,): evenly spread over SHARES of heads removed."""
    low, high = SHARES
    spread = (torch.randperm(num_rows, generator=noise) + torch.rand(num_rows, generator=noise)) / num_rows
    return ((1 - low - (high - low) * spread) * scores.numel()).clamp(1, scores.numel() - 0.5)


def threshold(keep: Callable[[Tensor], Tensor], count: Tensor) -> Tensor:
    """Return the threshold of each row, (N, 1, 1), at which `keep` of all heads sums to its count, by bisection."""
    low, high = torch.full_like(count, -50), torch.full_like(count, 50)
    for _ in range(40):
        middle = (low + high) / 2
        above = keep(middle[:, None, None]).sum((1, 2)) > count
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2)[:, None, None]


def logistic(shape: tuple[int, ...], noise: torch.Generator) -> Tensor:
    """Return logistic noise of scale NOISE."""
    return NOISE * torch.logit(torch.rand(shape, generator=noise).clamp(1e-6, 1 - 1e-6))


def with_the_best(gates: Tensor, noisy: Tensor) -> Tensor:
    """Return the gates, where the best head of each layer is kept."""
    return torch.maximum(gates, F.one_hot(noisy.argmax(-1), noisy.shape[-1]).to(gates.dtype))


def uniform_gates(scores: Tensor, num_rows: int, noise: torch.Generator, *, wide: bool = True) -> tuple[Tensor, Tensor]:
    """Return gates of uniform gradient sampling (Li and Janson 2024, arXiv 2409.09951), and weights.

    A head that is kept with probability p has a gate that is uniform in (0, 1) with probability w, and otherwise 0 or
    1, so that its mean is p. The gradient at the uniform gate is an unbiased estimate of the difference.

    Args:
        wide: the largest possible w; otherwise w = p (1 - p), as in the authors' code.
    """
    count, shape = heads_kept(scores, num_rows, noise), (num_rows, *scores.shape)
    kept = torch.sigmoid((scores - threshold(lambda t: torch.sigmoid((scores - t) / NOISE), count)) / NOISE)
    kept = kept.clamp(1e-4, 1 - 1e-4)
    width = torch.minimum(2 * kept, 2 * (1 - kept)) if wide else kept * (1 - kept)
    gates = 1 - ((torch.rand(shape, generator=noise) - kept) / width + 0.5).clamp(0, 1)
    weights = ((gates > 0) & (gates < 1)) * 4 * kept * (1 - kept) / width
    return with_the_best(gates, scores + logistic(shape, noise)), weights


def sparse_top_k(scores: Tensor, num_rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return gates of a sparse differentiable top-k (Sander et al. 2023): clipped lines that sum to k; and weights."""
    noisy = scores + logistic((num_rows, *scores.shape), noise)

    def line(at: Tensor) -> Tensor:
        return ((noisy - at) / (2 * NOISE) + 0.5).clamp(0, 1)

    gates = line(threshold(line, heads_kept(scores, num_rows, noise)))
    return with_the_best(gates, noisy), ((gates > 0) & (gates < 1)).to(gates.dtype)


@dataclass(frozen=True)
class Learner:
    """How scores are trained."""

    objective: str = "loss"
    draw: Draw = draw_masks
    start: str = "gradient_layer_norm"  # or "multilinear"
    rate: float = 0.2
    batch: int = 32
    equal_rows: bool = False  # the gradient of each row is divided by its root mean square over heads

    def initial(self, sample: GatedRows, row_passes: int, seed: int) -> Tensor:
        """Return the initial scores (L, H): ranks, evenly spaced over 4."""
        if self.start == "multilinear":
            values = multilinear(sample, row_passes, seed, self.objective, "normalized")
        else:
            values = gradient_layer_norm(sample, 2 * row_passes, seed)
        ranks = stats.rankdata(values.ravel()).reshape(values.shape)
        return torch.as_tensor(4 * (ranks / ranks.size - 0.5), dtype=torch.float32)

    def __call__(self, sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
        """Return the mean of the scores over the second half of the steps, (L, H)."""
        scores = self.initial(sample, row_passes // 4, seed)
        steps = int((row_passes - row_passes // 4) / row_cost(self.objective)) // self.batch
        rows, rng = drawn(sample, steps * self.batch, seed + 77), np.random.default_rng(seed)
        batches = plan_scoring(rows.split.lengths[rows.rows], self.batch)
        rng.shuffle(batches)
        noise, mean, square, history = torch.Generator().manual_seed(seed), torch.zeros(()), torch.zeros(()), []
        for step, batch in enumerate(batches):
            gates, weights = self.draw(scores, len(batch), noise)
            gradients = torch.from_numpy(gate_passes(rows.subset(rows.rows[batch]), gates, self.objective))
            if self.equal_rows:
                gradients = gradients / (gradients.square().mean((1, 2), keepdim=True).sqrt() + 1e-6)
            direction = (gradients * weights).mean(0)
            direction = direction - direction.mean()
            mean, square = 0.9 * mean + 0.1 * direction, 0.95 * square + 0.05 * direction.square().mean()
            scale = (square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12
            scores = scores - self.rate * (1 - 0.9 * step / steps) * mean / (1 - 0.9 ** (step + 1)) / scale
            history.append(scores)
        values: np.ndarray = torch.stack(history[len(history) // 2 :]).double().mean(0).numpy()
        return values


def quadratic_model(
    sample: GatedRows, row_passes: int, seed: int, ridge: float = 30.0, near: float = 10.0
) -> np.ndarray:
    """Return the order of greedy elimination on a quadratic model of the loss, fitted to gradients at random masks.

    The gradient of each head is fitted as a linear function of the mask, by ridge regression on rows that keep about as
    many heads as the current set.
    """
    rows = drawn(sample, row_passes, seed)
    masks, _ = draw_masks(torch.zeros(rows.gates().shape), len(rows), torch.Generator().manual_seed(seed))
    gradients, masks = gate_passes(rows, masks, "loss").reshape(len(rows), -1), masks.flatten(1).double()
    counts, kept = masks.sum(1).numpy(), np.ones(masks.shape[1])
    values, layers = np.full(len(kept), float(len(kept))), sample.gates().shape[0]
    for step in range(len(kept) - layers):
        weights = np.exp(-(((counts - kept.sum() + 0.5) / near) ** 2) / 2) + 1e-3
        design = np.concatenate([np.ones((len(rows), 1)), masks.numpy() - kept], axis=1)  # (N, 1 + L * H)
        penalty = np.diag([1e-6, *[ridge * weights.mean()] * len(kept)])
        fit = np.linalg.solve((design.T * weights) @ design + penalty, (design.T * weights) @ gradients)
        curvature = np.diag(fit[1:]) / 2
        cost = np.where(kept > 0, curvature - fit[0], np.inf).reshape(layers, -1)
        cost[kept.reshape(layers, -1).sum(1) == 1] = np.inf  # the last head of a layer
        values[cost.argmin()], kept[cost.argmin()] = step, 0
    return values.reshape(layers, -1)


def hard_concrete(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return the log-odds of learned gates (Louizos et al. 2018; Voita et al. 2019)."""
    rows = drawn(sample, row_passes // 16, seed)
    return learned_gates(rows, 16, seed=seed).values


LEARNERS: dict[str, Ranker] = {
    "one trajectory": Learner(),
    "one trajectory, kl": Learner(objective="kl"),
    "one trajectory, error": Learner(objective="error"),
    "one trajectory, half the rate": Learner(rate=0.1),
    "one trajectory, twice the rate": Learner(rate=0.4),
    "one trajectory, 16 rows per step": Learner(batch=16, rate=0.14),
    "one trajectory, 8 rows per step": Learner(batch=8, rate=0.1),
    "one trajectory, rows of equal weight": Learner(equal_rows=True),
    "multilinear start": Learner(start="multilinear"),
    "multilinear start, error": Learner(start="multilinear", objective="error"),
    "uniform gradient sampling": Learner(draw=uniform_gates),
    "uniform gradient sampling, narrow": Learner(draw=partial(uniform_gates, wide=False)),
    "sparse top-k": Learner(draw=sparse_top_k),
    "quadratic model": quadratic_model,
    "gates": hard_concrete,
}
