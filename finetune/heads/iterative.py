"""Importance that is measured again as heads go: what is left matters more once others are gone.

L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from finetune.heads.estimate import Estimate, Head, last_heads_last, removal_order
from finetune.heads.sample import Sample

Scorer = Callable[[torch.Tensor], Estimate]


def iterative(sample: Sample, scorer: Scorer, rounds: int = 10) -> Estimate:
    """Return the order in which heads go if the least important tenth is removed and the rest measured again.

    Michel, Levy and Neubig 2019, section 4.1, where the measure is the gradient. A layer keeps its last head until
    the end. A head's value is its score when it went, or the highest score of those that went before it, so that
    values rise along the order; it has an error where the value is its own score.

    Args:
        scorer: from the gates (L, H) of the heads that are left to their estimate.
        rounds: parts that the heads go in. The last two go after the same measurement: what is left by then is each
            layer's last head, or little more.
    """
    sites, gates = sample.sites, sample.gates()
    heads = sum(site.num_heads for site in sites)
    gone: list[Head] = []
    values, errors = np.full(gates.shape, np.nan), np.full(gates.shape, np.nan)
    highest, estimate = -np.inf, Estimate(values)
    for turn in range(1, rounds + 1):
        number = round(heads * turn / rounds) - len(gone)
        if number == 0:  # fewer heads than rounds
            continue
        if turn < rounds or rounds == 1:
            estimate = scorer(gates)
        left = [at for at in removal_order(estimate.values, sites, keep_one=False) if gates[at] > 0]
        order = last_heads_last([*gone, *left], sites)
        going = [at for at in order if at not in gone][:number]
        for at in going:
            highest = max(highest, float(estimate.values[at]))
            values[at] = highest
            own = estimate.values[at] == highest and estimate.errors is not None
            errors[at] = estimate.errors[at] if own and estimate.errors is not None else np.nan
            gates[at] = 0
        gone += going
    return Estimate(values, None if np.isnan(errors).all() else errors, order=tuple(gone))
