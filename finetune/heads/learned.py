"""Importance from gates that are learned under a price on open ones.

N rows, B batch, L layers, H heads
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from finetune.heads.estimate import Estimate
from finetune.heads.sample import Sample, gate_gradients, real_heads

# Louizos, Welling and Kingma 2018, section 4: temperature, and the ends that sigmoids are stretched to.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
FOLDS = 4


def learned_gates(sample: Sample, steps: int, price: float = 0.02, seed: int = 0) -> Estimate:
    """Return the log-odds of hard-concrete gates, trained with the model's weights fixed.

    Each gate is open with probability sigmoid(log_alpha - TEMPERATURE log(-LOW / HIGH)); the loss is the rows'
    own plus `price` times the expected number of open gates (Louizos et al. 2018, equations 10 to 12; for heads:
    Voita et al. 2019, section 6.1). Each row draws its own gates in each step.

    The rows are parted in four folds that are trained apart; values are the mean over folds, and errors the
    standard error of that mean, so that they tell how much the gates depend on the rows and on the noise.

    Args:
        steps: optimiser steps of a fold, each over all its rows (Adam, learning rate 0.2).
        price: loss that one open gate must save.
    """
    folds = min(FOLDS, len(sample))
    parts = np.array_split(np.random.default_rng(seed).permutation(sample.rows), folds)
    found = np.stack(  # (folds, L, H)
        [_train(sample.only(np.sort(part)), steps, price, seed + fold) for fold, part in enumerate(parts)]
    )
    found[:, ~real_heads(sample.sites)] = np.nan
    errors = found.std(0, ddof=1) / math.sqrt(folds) if folds > 1 else None
    return Estimate(found.mean(0), errors, note=f"{folds} folds of {len(sample) // folds} rows, {steps} steps each")


def _train(sample: Sample, steps: int, price: float, seed: int) -> np.ndarray:
    """Return log_alpha (L, H) after training on the sample's rows."""
    log_alpha = torch.full_like(sample.gates().cpu(), 2.0).requires_grad_()
    optimizer = torch.optim.Adam([log_alpha], lr=0.2)
    noise, there = torch.Generator().manual_seed(seed), torch.from_numpy(real_heads(sample.sites))
    shift = TEMPERATURE * math.log(-LOW / HIGH)
    for _ in range(steps):
        gates = hard_concrete(log_alpha, len(sample), noise)  # (N, L, H)
        at = gates.detach().to(sample.accelerator.device)
        gradients = torch.where(there, torch.from_numpy(gate_gradients(sample, at)), 0)  # (N, L, H)
        optimizer.zero_grad()
        gates.backward(gradients / len(sample))  # the chain rule: loss -> gates -> log_alpha
        (price * torch.sigmoid(log_alpha - shift).sum()).backward()
        optimizer.step()
    return log_alpha.detach().double().numpy()


def hard_concrete(log_alpha: Tensor, rows: int, noise: torch.Generator) -> Tensor:
    """Return gates in [0, 1] for each row, (N, L, H), that are 0 or 1 with a probability above 0."""
    uniform = torch.rand(rows, *log_alpha.shape, generator=noise).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)
