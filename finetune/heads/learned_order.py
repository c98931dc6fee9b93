"""A removal order of the heads that is learned by removing heads, with the weights of the model fixed.

N rows, B batch, L layers, H heads, F folds, P heads of all layers together
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.gated_forward import GatedRows, broadcast_decision, gate_gradients
from finetune.heads.importance_estimate import Estimate, layer_normalized, mean_over_rows
from finetune.models.head_gates import head_mask
from finetune.progress import stage
from finetune.recipe.head_costs import BATCH, FOLDS, ROW_PASSES, learned_order_passes

_SPAN = 4.0  # the initial scores are evenly spaced over this range
_NOISE = 0.3  # temperature of the noise on scores, and width of the zone around the threshold that a step moves
_RATE = 0.2  # learning rate of the first step; it decays to a tenth of this value
_SHARES = (0.05, 0.95)  # smallest and largest share of heads removed


def learned_order(
    sample: GatedRows, row_passes: int = ROW_PASSES, seed: int = 0, max_seconds: float | None = None
) -> Estimate:
    """Return scores whose order keeps the expected loss low over all shares of heads removed.

    In each step every row draws a share s between 5 and 95 %. Logistic noise is added to the scores, and the heads
    with the lowest noisy scores, a share s of all, are gated to 0, except the best head of each layer. The gradient
    with respect to the gates, removed ones included, is passed straight through the threshold to the scores, weighted
    by how close a head is to the threshold (straight-through estimator, Bengio et al. 2013). The scores thus descend
    on what the mean of a pruning curve measures, with the loss in place of the metric. Differentiable subset pruning
    (Li et al. 2021) learns a subset for one number of heads; here one order serves all numbers.

    The initial scores are the ranks of the layer-normalized gradient, from at most 256 rows. The other row passes are
    for the steps; with too few for a step, the order is that of the layer-normalized gradient.

    The rows are divided into four folds, and each fold learns its own scores. The result is their mean. Its standard
    error, over folds, thus contains the choice of rows and the randomness of training.

    Args:
        row_passes: largest number of forward and backward passes of one row.
        max_seconds: time limit of the steps; at least one is taken.
    """
    rng, num_folds = np.random.default_rng(seed), min(FOLDS, len(sample))
    start_rows, steps = learned_order_passes(len(sample), row_passes)
    shuffled = rng.permutation(len(sample))  # position n is in fold n modulo F
    first = sample.subset(sample.rows[shuffled[:start_rows]])
    scores = initial_scores(first, np.arange(start_rows) % num_folds, num_folds)
    batches = [_batches(shuffled[fold::num_folds], steps, rng) for fold in range(num_folds)]
    trainers = [ScoreTrainer(scores[fold], torch.from_numpy(head_mask(sample.sites))) for fold in range(num_folds)]
    noise, history = torch.Generator().manual_seed(seed), [scores]
    deadline = math.inf if max_seconds is None else time.perf_counter() + max_seconds
    with stage("steps", total=steps) as progress:
        for step in range(steps):
            limited = step > 0 and deadline < math.inf
            if limited and broadcast_decision(sample.accelerator, time.perf_counter() > deadline):
                break
            rows = sample.subset(sample.rows[np.concatenate([fold[step] for fold in batches])])
            draws = [draw_masks(trainer.scores, BATCH, noise) for trainer in trainers]
            gates, weights = (torch.cat(parts) for parts in zip(*draws, strict=True))  # (F * B, L, H) each
            gradients = torch.from_numpy(gate_gradients(rows, gates.to(sample.accelerator.device)))
            for trainer, part in zip(trainers, (gradients * weights).split(BATCH), strict=True):
                trainer.step(part.mean(0), rate=_RATE * (1 - 0.9 * step / steps))
            history.append(torch.stack([trainer.scores for trainer in trainers]))
            progress.advance()
    return _estimate(history, sample, f"initial scores from {start_rows} rows")


def _estimate(history: list[Tensor], sample: GatedRows, note: str) -> Estimate:
    """Return the mean over folds and over the second half of the steps, with its standard error over folds.

    Args:
        history: the scores of the folds, (F, L, H), before the first step and after each.
    """
    steps = len(history) - 1
    table = torch.stack(history[-max(1, (steps + 1) // 2) :]).double().mean(0).numpy()  # (F, L, H)
    table[:, ~head_mask(sample.sites)] = np.nan
    errors = table.std(0, ddof=1) / math.sqrt(len(table)) if len(table) > 1 else None
    note = f"{note}; {len(table)} folds, steps of {BATCH} rows per fold: {steps}"
    return Estimate(table.mean(0), errors, note=note, folds=table)


def initial_scores(sample: GatedRows, folds: np.ndarray, num_folds: int) -> Tensor:
    """Return the scores of each fold before the first step, (F, L, H); minus infinity where there is no head.

    Their mean are the ranks of the layer-normalized gradient of all rows, evenly spaced. The folds differ from it as
    the ranks of their own rows do from each other.

    Args:
        folds: the fold of each row, (N,).
    """
    mask = head_mask(sample.sites)
    values = np.abs(gate_gradients(sample))  # (N, L, H)

    def spaced(contributions: np.ndarray) -> np.ndarray:
        ranks = stats.rankdata(layer_normalized(mean_over_rows(contributions)).values[mask])
        scores: np.ndarray = _SPAN * (ranks / len(ranks) - 0.5)
        return scores

    own = np.stack([spaced(values[folds == fold] if (folds == fold).any() else values) for fold in range(num_folds)])
    scores = torch.full((num_folds, *mask.shape), -math.inf)
    scores[:, torch.from_numpy(mask)] = torch.as_tensor(spaced(values) + own - own.mean(0), dtype=torch.float32)
    return scores


def _batches(fold: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of a fold's rows in each step, (steps, B): each row as often as the others."""
    rounds = [rng.permutation(fold) for _ in range(math.ceil(steps * BATCH / len(fold)))]
    return np.concatenate([np.array([], dtype=int), *rounds])[: steps * BATCH].reshape(steps, BATCH)


@dataclass
class ScoreTrainer:
    """The scores of a fold, (L, H), and the running averages of Adam.

    Adam has one scale for all heads: a head whose gradient is small should move little.
    """

    scores: Tensor
    mask: Tensor  # (L, H): which cells are heads
    mean: Tensor | float = 0.0
    square: Tensor | float = 0.0
    steps: int = 0

    def step(self, gradient: Tensor, *, rate: float) -> None:
        """Move the scores against a gradient (L, H)."""
        direction = torch.where(self.mask, gradient - gradient[self.mask].mean(), 0)  # only the order matters
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * direction
        self.square = 0.95 * self.square + 0.05 * direction[self.mask].square().mean()
        scale = (self.square / (1 - 0.95**self.steps)) ** 0.5 + 1e-12
        self.scores = self.scores - rate * self.mean / (1 - 0.9**self.steps) / scale


def draw_masks(scores: Tensor, num_rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random masks of the heads that each row keeps, and the weight of the gradient of each head.

    Args:
        scores: (L, H); minus infinity where there is no head.

    Returns:
        masks of 0 and 1, (N, L, H), which keep the best head of each layer; weights in [0, 1], (N, L, H): 1 for a
        head at the threshold between kept and removed heads, and falling with the distance from it.
    """
    count = int(torch.isfinite(scores).sum())
    low, high = _SHARES
    spread = (torch.randperm(num_rows, generator=noise) + torch.rand(num_rows, generator=noise)) / num_rows
    keep = ((1 - low - (high - low) * spread) * count).round().long().clamp(1, count)  # (N,)
    uniform = torch.rand(num_rows, *scores.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
    noisy = scores + _NOISE * torch.logit(uniform)  # (N, L, H)
    descending = noisy.flatten(1).sort(dim=1, descending=True).values  # (N, P)
    last_kept, first_removed = (descending.gather(1, index.clamp(max=count - 1)[:, None]) for index in (keep - 1, keep))
    threshold = ((last_kept + first_removed) / 2)[..., None]  # (N, 1, 1)
    best = F.one_hot(noisy.argmax(-1), scores.shape[1]).to(noisy.dtype)  # (N, L, H)
    masks = torch.maximum((noisy >= threshold).to(noisy.dtype), best)
    closeness = torch.sigmoid((noisy - threshold) / _NOISE)
    return masks, 4 * closeness * (1 - closeness)
