"""Importance that is learned: gates under a price for open ones, and an order that keeps the loss low as heads go.

N rows, B batch, L layers, H heads
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from finetune.data.batching import plan_scoring
from finetune.heads.estimate import Estimate
from finetune.heads.gated_forward import GatedRows, broadcast_decision, gate_gradients
from finetune.heads.gradients import gradient_layer_norm
from finetune.models.head_gates import head_mask

# Louizos, Welling and Kingma 2018, section 4: temperature, and the ends that sigmoids are stretched to.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)  # a gate is open with log-odds log_alpha - SHIFT


def learned_gates(
    sample: GatedRows, steps: int, price: float = 0.02, seed: int = 0, max_seconds: float | None = None
) -> Estimate:
    """Return the log-odds that hard-concrete gates are open, trained with the model's weights fixed.

    Each gate is open with probability sigmoid(log_alpha - TEMPERATURE log(-LOW / HIGH)); the loss is the rows'
    own plus `price` times the expected number of open gates (Louizos et al. 2018, equations 10 to 12; for heads:
    Voita et al. 2019, section 6.1). Each row draws its own gates in each step. See `learn_in_folds` for the errors.

    Args:
        steps: optimiser steps of a fold, each over all its rows (Adam, learning rate 0.2).
        price: loss that one open gate must save, in the unit of the loss.
        max_seconds: time after which no fold takes another step.
    """

    def learn(fold: GatedRows, seed: int, late: Late) -> np.ndarray:
        return _train(fold, steps, price, seed, late) - SHIFT

    note = f"at most {steps} steps each, at a price of {price:g} a head"
    return learn_in_folds(sample, learn, seed=seed, max_seconds=max_seconds, note=note)


def _train(sample: GatedRows, steps: int, price: float, seed: int, late: Late) -> np.ndarray:
    """Return log_alpha (L, H) after training on the sample's rows."""
    log_alpha = torch.full_like(sample.gates().cpu(), 2.0).requires_grad_()
    optimizer = torch.optim.Adam([log_alpha], lr=0.2)
    noise, there = torch.Generator().manual_seed(seed), torch.from_numpy(head_mask(sample.sites))
    for step in range(steps):
        if step and late():
            break
        gates = hard_concrete(log_alpha, len(sample), noise)  # (N, L, H)
        at = gates.detach().to(sample.accelerator.device)
        gradients = torch.where(there, torch.from_numpy(gate_gradients(sample, at)), 0)  # (N, L, H)
        optimizer.zero_grad()
        gates.backward(gradients / len(sample))  # the chain rule: loss -> gates -> log_alpha
        (price * torch.sigmoid(log_alpha - SHIFT).sum()).backward()
        optimizer.step()
    return log_alpha.detach().double().numpy()


def hard_concrete(log_alpha: Tensor, rows: int, noise: torch.Generator) -> Tensor:
    """Return gates in [0, 1] for each row, (N, L, H), that are 0 or 1 with a probability above 0."""
    uniform = torch.rand(rows, *log_alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


FOLDS = 4


Late = Callable[[], bool]


def learn_in_folds(
    sample: GatedRows,
    learn: Callable[[GatedRows, int, Late], np.ndarray],
    *,
    seed: int,
    max_seconds: float | None,
    note: str,
) -> Estimate:
    """Return the mean of what `learn` makes of each fold, (L, H), with the standard error of that mean over folds.

    The error tells how much the result hangs on the rows and on the noise of learning; it is that of folds a quarter
    the size, each learned for itself.

    Args:
        learn: from a fold's rows, a seed, and a function that says when time is up.
        max_seconds: for all folds together; each has its part. None: no bound.
    """
    folds = min(FOLDS, len(sample))
    parts = np.array_split(np.random.default_rng(seed).permutation(sample.rows), folds)
    started, found = time.perf_counter(), []
    for number, part in enumerate(parts, start=1):
        until = math.inf if max_seconds is None else started + max_seconds * number / folds

        def late(until: float = until) -> bool:
            return until < math.inf and broadcast_decision(sample.accelerator, time.perf_counter() > until)

        found.append(learn(sample.subset(np.sort(part)), seed + number - 1, late))
    table = np.stack(found)  # (F, L, H)
    table[:, ~head_mask(sample.sites)] = np.nan
    errors = table.std(0, ddof=1) / math.sqrt(folds) if folds > 1 else None
    return Estimate(table.mean(0), errors, note=f"{folds} folds of {len(sample) // folds} rows, {note}", folds=table)


_BATCH = 32  # rows of a step, each with a draw of its own
_SPAN = 4.0  # scores start evenly spread over this range
_TEMPERATURE = 0.3  # of the noise on scores, and width of the zone about the threshold that a step moves
_RATE = 0.2  # of the first step; it falls to a tenth
_SHARES = (0.05, 0.95)  # of heads removed


def learned_order(sample: GatedRows, steps: int, seed: int = 0, max_seconds: float | None = None) -> Estimate:
    """Return scores whose order keeps the expected loss low over all shares of heads removed.

    For each row of a step a share s is drawn evenly between 5 and 95 %, logistic noise is added to the scores, and
    the heads whose noisy score is among the lowest s are gated to 0, but for the best head of each layer. The rows'
    loss is differentiated by the gates, removed ones included, and passed straight through the threshold to the
    scores, weighted by how near a head is to it (straight-through estimator, Bengio et al. 2013). So the scores
    descend on the very thing that the mean of a pruning curve measures, but for the loss in place of accuracy.
    Li et al. 2021 (differentiable subset pruning) learn the set for one number of heads; here one order serves all.

    Scores start as the ranks of the layer-normalised gradient. See `learn_in_folds` for the errors.

    Args:
        steps: of each fold, with 32 rows each.
        max_seconds: time after which no fold takes another step.
    """

    def learn(fold: GatedRows, seed: int, late: Late) -> np.ndarray:
        return _learn(fold, steps, seed, late)

    note = f"at most {steps} steps of {_BATCH} rows each"
    return learn_in_folds(sample, learn, seed=seed, max_seconds=max_seconds, note=note)


def _learn(sample: GatedRows, steps: int, seed: int, late: Late) -> np.ndarray:
    """Return scores (L, H), the mean of those after each step of the second half."""
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    there = torch.from_numpy(head_mask(sample.sites))  # (L, H)
    start = gradient_layer_norm(sample).values
    ranks = stats.rankdata(start[there.numpy()])
    scores = torch.full(there.shape, -math.inf)
    scores[there] = torch.as_tensor(_SPAN * (ranks / len(ranks) - 0.5), dtype=torch.float32)
    mean_step, mean_square = torch.zeros_like(scores), torch.tensor(0.0)
    passed, batches = list[Tensor](), list[np.ndarray]()
    for step in range(1, steps + 1):
        if step > 1 and late():
            break
        if not batches:
            batches = plan_scoring(sample.split.lengths[sample.rows], _BATCH)
            rng.shuffle(batches)
        rows = sample.subset(sample.rows[batches.pop()])
        mask, weight = draw_masks(scores, len(rows), noise)  # (B, L, H) each
        gradients = torch.from_numpy(gate_gradients(rows, mask.to(sample.accelerator.device)))  # (B, L, H)
        direction = (gradients * weight).mean(0)  # (L, H)
        direction = torch.where(there, direction - direction[there].mean(), 0)  # the order alone matters
        # Adam with one scale for all heads: a head whose gradient is small should move little.
        mean_step = 0.9 * mean_step + 0.1 * direction
        mean_square = 0.95 * mean_square + 0.05 * direction[there].square().mean()
        scale = (mean_square / (1 - 0.95**step)).sqrt() + 1e-12
        rate = _RATE * (1 - 0.9 * (step - 1) / steps)
        scores = scores - rate * mean_step / (1 - 0.9**step) / scale
        passed.append(scores)
    values: np.ndarray = torch.stack(passed[len(passed) // 2 :]).double().mean(0).numpy()
    return values


def draw_masks(scores: Tensor, rows: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return for each row which heads stay, and how strongly the threshold ties each head's score to its gate.

    Args:
        scores: (L, H); minus infinity where there is no head.

    Returns:
        masks of 0 and 1, (N, L, H), with the best head of each layer kept; weights in [0, 1], (N, L, H).
    """
    count = int(torch.isfinite(scores).sum())
    low, high = _SHARES
    spread = (torch.randperm(rows, generator=noise) + torch.rand(rows, generator=noise)) / rows
    keep = ((1 - low - (high - low) * spread) * count).round().long().clamp(1, count)  # (N,)
    uniform = torch.rand(rows, *scores.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
    noisy = scores + _TEMPERATURE * torch.logit(uniform)  # (N, L, H)
    ordered = noisy.flatten(1).sort(dim=1, descending=True).values  # (N, P)
    last_in, first_out = (ordered.gather(1, place.clamp(max=count - 1)[:, None]) for place in (keep - 1, keep))
    threshold = ((last_in + first_out) / 2)[..., None]  # (N, 1, 1)
    best = F.one_hot(noisy.argmax(-1), scores.shape[1]).to(noisy.dtype)  # (N, L, H)
    masks = torch.maximum((noisy >= threshold).to(noisy.dtype), best)
    near = torch.sigmoid((noisy - threshold) / _TEMPERATURE)
    return masks, 4 * near * (1 - near)
