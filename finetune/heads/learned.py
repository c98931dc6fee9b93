"""Head importance that is learned on folds of the rows: hard-concrete gates, and a removal order.

Both methods keep the weights of the model fixed and train one number per head. They are trained on four folds of the
rows separately, which gives the standard errors.

    N rows, B batch, L layers, H heads, F folds, P heads of all layers together
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from finetune.data.sampler import plan_scoring
from finetune.heads.gated_forward import GatedRows, broadcast_decision, gate_gradients
from finetune.heads.gradients import gradient_layer_norm
from finetune.heads.importance_estimate import Estimate
from finetune.models.head_gates import head_mask
from finetune.progress import stage

FOLDS = 4
# Hard-concrete gates (Louizos, Welling and Kingma 2018, section 4): temperature, and the interval to which sigmoids
# are stretched.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)  # a gate is open with log-odds log_alpha - SHIFT
# Learned order.
_BATCH = 32  # rows per step, each with its own draw of masks
_SPAN = 4.0  # the initial scores are evenly spaced over this range
_NOISE = 0.3  # temperature of the noise on scores, and width of the zone around the threshold that a step moves
_RATE = 0.2  # learning rate of the first step; it decays to a tenth of this value
_SHARES = (0.05, 0.95)  # smallest and largest share of heads removed

# Learns one value per head, (L, H), from the rows of a fold, a seed, and the numbers of the steps that fit into the
# time limit, counted from 0.
Learner = Callable[[GatedRows, int, Iterator[int]], np.ndarray]


def learn_in_folds(
    sample: GatedRows, learner: Learner, steps: int, *, seed: int, max_seconds: float | None, note: str
) -> Estimate:
    """Return the mean over folds of the learned values, (L, H), with the standard error of that mean.

    The folds share no rows and are trained separately. The error thus contains the choice of rows and the randomness
    of training.

    Args:
        steps: largest number of steps per fold.
        max_seconds: for all folds together; each fold gets an equal share and takes at least one step. None: no limit.
    """
    folds = min(FOLDS, len(sample))
    parts = np.array_split(np.random.default_rng(seed).permutation(sample.rows), folds)
    started, learned = time.perf_counter(), []
    with stage("steps", total=folds * steps) as progress:
        for fold, rows in enumerate(parts):
            deadline = math.inf if max_seconds is None else started + max_seconds * (fold + 1) / folds

            def steps_in_time(deadline: float = deadline) -> Iterator[int]:
                for step in range(steps):
                    limited = step > 0 and deadline < math.inf
                    if limited and broadcast_decision(sample.accelerator, time.perf_counter() > deadline):
                        return
                    yield step
                    progress.advance()

            learned.append(learner(sample.subset(np.sort(rows)), seed + fold, steps_in_time()))
    table = np.stack(learned)  # (F, L, H)
    table[:, ~head_mask(sample.sites)] = np.nan
    errors = table.std(0, ddof=1) / math.sqrt(folds) if folds > 1 else None
    return Estimate(table.mean(0), errors, note=f"{folds} folds of {len(sample) // folds} rows, {note}", folds=table)


def learned_gates(
    sample: GatedRows, steps: int, price: float = 0.02, seed: int = 0, max_seconds: float | None = None
) -> Estimate:
    """Return the log-odds that each hard-concrete gate is open, trained with the weights of the model fixed.

    A gate is open with probability sigmoid(log_alpha - TEMPERATURE log(-LOW / HIGH)). The training loss is the loss of
    the rows plus `price` times the expected number of open gates (Louizos et al. 2018, equations 10 to 12; for heads:
    Voita et al. 2019, section 6.1). Each row draws its own gates in each step.

    Args:
        steps: optimizer steps per fold, each over all rows of the fold (Adam, learning rate 0.2).
        price: of one open gate, in units of the loss.
        max_seconds: time limit for all folds together.
    """

    def learner(fold: GatedRows, seed: int, steps: Iterator[int]) -> np.ndarray:
        return _train_gates(fold, price, seed, steps) - SHIFT

    note = f"at most {steps} steps each, at a price of {price:g} per open gate"
    return learn_in_folds(sample, learner, steps, seed=seed, max_seconds=max_seconds, note=note)


def _train_gates(sample: GatedRows, price: float, seed: int, steps: Iterator[int]) -> np.ndarray:
    """Return log_alpha (L, H) after training on the rows of the sample."""
    log_alpha = torch.full_like(sample.gates().cpu(), 2.0).requires_grad_()
    optimizer = torch.optim.Adam([log_alpha], lr=0.2)
    noise, mask = torch.Generator().manual_seed(seed), torch.from_numpy(head_mask(sample.sites))
    for _ in steps:
        gates = hard_concrete(log_alpha, len(sample), noise)  # (N, L, H)
        point = gates.detach().to(sample.accelerator.device)
        gradients = torch.where(mask, torch.from_numpy(gate_gradients(sample, point)), 0)  # (N, L, H)
        optimizer.zero_grad()
        gates.backward(gradients / len(sample))  # the chain rule: loss -> gates -> log_alpha
        (price * torch.sigmoid(log_alpha - SHIFT).sum()).backward()
        optimizer.step()
    return log_alpha.detach().double().numpy()


def hard_concrete(log_alpha: Tensor, num_rows: int, noise: torch.Generator) -> Tensor:
    """Return random gates in [0, 1], (N, L, H), that are exactly 0 or exactly 1 with positive probability.

    Louizos, Welling and Kingma 2018, equations 10 and 11.
    """
    uniform = torch.rand(num_rows, *log_alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def learned_order(sample: GatedRows, steps: int, seed: int = 0, max_seconds: float | None = None) -> Estimate:
    """Return scores whose order keeps the expected loss low over all shares of heads removed.

    In each step every row draws a share s between 5 and 95 %. Logistic noise is added to the scores, and the heads
    with the lowest noisy scores, a share s of all, are gated to 0, except the best head of each layer. The gradient
    with respect to the gates, removed ones included, is passed straight through the threshold to the scores, weighted
    by how close a head is to the threshold (straight-through estimator, Bengio et al. 2013). The scores thus descend
    on what the mean of a pruning curve measures, with the loss in place of the metric. Differentiable subset pruning
    (Li et al. 2021) learns a subset for one number of heads; here one order serves all numbers.

    The initial scores are the ranks of the layer-normalized gradient.

    Args:
        steps: per fold, with 32 rows each.
        max_seconds: time limit for all folds together.
    """

    def learner(fold: GatedRows, seed: int, step_numbers: Iterator[int]) -> np.ndarray:
        return _learn_scores(fold, steps, seed, step_numbers)

    note = f"at most {steps} steps of {_BATCH} rows each"
    return learn_in_folds(sample, learner, steps, seed=seed, max_seconds=max_seconds, note=note)


def _learn_scores(sample: GatedRows, max_steps: int, seed: int, steps: Iterator[int]) -> np.ndarray:
    """Return scores (L, H): the mean of the scores after each step of the second half."""
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    mask = torch.from_numpy(head_mask(sample.sites))  # (L, H)
    ranks = stats.rankdata(gradient_layer_norm(sample).values[mask.numpy()])
    scores = torch.full(mask.shape, -math.inf)
    scores[mask] = torch.as_tensor(_SPAN * (ranks / len(ranks) - 0.5), dtype=torch.float32)
    mean_step, mean_square = torch.zeros_like(scores), torch.tensor(0.0)
    history, batches = list[Tensor](), list[np.ndarray]()
    for step in steps:
        if not batches:
            batches = plan_scoring(sample.split.lengths[sample.rows], _BATCH)
            rng.shuffle(batches)
        batch = sample.subset(sample.rows[batches.pop()])
        gates, weights = draw_masks(scores, len(batch), noise)  # (B, L, H) each
        gradients = torch.from_numpy(gate_gradients(batch, gates.to(sample.accelerator.device)))  # (B, L, H)
        direction = (gradients * weights).mean(0)  # (L, H)
        direction = torch.where(mask, direction - direction[mask].mean(), 0)  # only the order matters
        # Adam with one scale for all heads: a head whose gradient is small should move little.
        mean_step = 0.9 * mean_step + 0.1 * direction
        mean_square = 0.95 * mean_square + 0.05 * direction[mask].square().mean()
        scale = (mean_square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12
        rate = _RATE * (1 - 0.9 * step / max_steps)
        scores = scores - rate * mean_step / (1 - 0.9 ** (step + 1)) / scale
        history.append(scores)
    values: np.ndarray = torch.stack(history[len(history) // 2 :]).double().mean(0).numpy()
    return values


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
