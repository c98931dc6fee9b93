"""Importance from gates that are learned under a price on open ones.

N rows, B batch, L layers, H heads
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from finetune.heads.estimate import Estimate
from finetune.heads.folds import Late, learn_in_folds
from finetune.heads.sample import Sample, gate_gradients, real_heads

# Louizos, Welling and Kingma 2018, section 4: temperature, and the ends that sigmoids are stretched to.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)  # a gate is open with log-odds log_alpha - SHIFT


def learned_gates(
    sample: Sample, steps: int, price: float = 0.02, seed: int = 0, max_seconds: float | None = None
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

    def learn(fold: Sample, seed: int, late: Late) -> np.ndarray:
        return _train(fold, steps, price, seed, late) - SHIFT

    note = f"at most {steps} steps each, at a price of {price:g} a head"
    return learn_in_folds(sample, learn, seed=seed, max_seconds=max_seconds, note=note)


def _train(sample: Sample, steps: int, price: float, seed: int, late: Late) -> np.ndarray:
    """Return log_alpha (L, H) after training on the sample's rows."""
    log_alpha = torch.full_like(sample.gates().cpu(), 2.0).requires_grad_()
    optimizer = torch.optim.Adam([log_alpha], lr=0.2)
    noise, there = torch.Generator().manual_seed(seed), torch.from_numpy(real_heads(sample.sites))
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
