"""Head importance from learned hard-concrete gates, with the weights of the model fixed.

The gates are trained on four folds of the rows separately, which gives the standard errors.

    N rows, L layers, H heads, F folds
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from finetune.heads.gated_forward import GatedRows, broadcast_decision, gate_gradients
from finetune.heads.importance_estimate import Estimate
from finetune.models.head_gates import head_mask
from finetune.progress import stage
from finetune.recipe.head_costs import FOLDS

# Hard-concrete gates (Louizos, Welling and Kingma 2018, section 4): temperature, and the interval to which sigmoids
# are stretched.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)  # a gate is open with log-odds log_alpha - SHIFT

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
