"""Ranks of the adapters where heads matter: as many parameters as a uniform rank, shared out by importance.

A fresh classification head makes the gradients of the base meaningless: they say how to fit a random head. So
the uniform adapters are trained for a short while first, and the importance of the heads is measured then.

    L layers, H heads, N rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from finetune.data.encoding import EncodedSplit
from finetune.errors import ModelError, TrainingError
from finetune.heads.sample import Sample, check_sample, gate_gradients, sample_rows
from finetune.loop import Loop
from finetune.lora import adapted_modules
from finetune.modeling import Classifier
from finetune.plan import Plan
from finetune.progress import TrainingProgress
from finetune.recipe import TrainingSection
from finetune.results import LayerRanks, read_json
from finetune.training import fit

SHARE = 0.1  # of the run's steps: enough for the new head to mean something, and a tenth of the price
FEWEST_STEPS = 20  # below, the new head has hardly moved from its random start
ROWS = 512  # training rows: the importance of a layer, a mean over heads, is steady within a few hundred


def ranks_by_importance(importance: Sequence[float], r: int, costs: Sequence[int] | None = None) -> list[int]:
    """Return a whole rank of 1 or more for each layer, in proportion to importance, that together cost what r would.

    Layers whose share is below 1 get 1, and the others share the rest. Shares are rounded down, and what is left
    goes one by one to the largest remainders (Hare quota), the first layer first among equals. With equal costs
    the ranks add up to exactly L * r, and a layer that matters more never gets less.

    Args:
        importance: (L,), not negative; all 0 counts as all equal.
        r: the uniform rank whose cost is to be met.
        costs: parameters of one rank in each layer, (L,); None: equal. Where they differ, the cost is at most that
            of uniform r and falls short of it by less than one rank.

    Raises:
        ModelError: an importance is negative or not finite, so that nothing can be shared out by it.
    """
    if not all(math.isfinite(value) and value >= 0 for value in importance):
        raise ModelError(
            f"peft.rank_pattern: by_importance: importance by layer is {[float(value) for value in importance]}, but "
            "must be finite and not negative; lower training.learning_rate, or give ranks as a mapping"
        )
    weights = [Fraction(float(value)) for value in importance]  # exact, so that no rounding decides
    weights = weights if any(weights) else [Fraction(1)] * len(weights)
    prices = list(costs or [1] * len(weights))
    budget, least = r * sum(prices), set[int]()
    while True:
        rest = [index for index in range(len(weights)) if index not in least]
        left = budget - sum(prices[index] for index in least)
        unit = Fraction(left) / sum(weights[index] * prices[index] for index in rest)
        below = {index for index in rest if weights[index] * unit < 1}
        if not below:
            break
        least |= below
    shares = [Fraction(1) if index in least else weight * unit for index, weight in enumerate(weights)]
    ranks = [int(share) for share in shares]
    left = budget - sum(rank * price for rank, price in zip(ranks, prices, strict=True))
    for index in sorted(rest, key=lambda index: (ranks[index] - shares[index], index)):
        if prices[index] > left:
            break
        ranks[index] += 1
        left -= prices[index]
    return ranks


def rehearsal_plan(plan: Plan) -> Plan:
    """Return the plan of the rehearsal: a tenth of the run's steps, at least 20, or all where the run has fewer.

    It is a short run of its own, with warm-up and decay in proportion; nothing is evaluated or saved.
    """
    steps = min(plan.total_steps, max(FEWEST_STEPS, math.ceil(SHARE * plan.total_steps)))
    warmup = math.ceil(plan.warmup_steps * steps / plan.total_steps)
    return replace(plan, total_steps=steps, warmup_steps=warmup, eval_every=None, save_every=None, patience=None)


def rehearse_ranks(
    classifier: Classifier,
    split: EncodedSplit,
    plan: Plan,
    training: TrainingSection,
    *,
    r: int,
    roles: Sequence[str],
    layers: Sequence[int] | None,
    loraplus_lr_ratio: float | None,
    seed: int,
    rows: int,
    batch_size: int,
    accelerator: Accelerator,
    progress: TrainingProgress,
) -> LayerRanks:
    """Train uniform adapters by the rehearsal's plan, and return ranks by the importance of the layers' heads.

    The classifier is used up. Every process returns the same ranks: gradients are gathered before they are averaged.

    Args:
        split: the training rows; importance is measured on `rows` of them, `batch_size` at a time.
        plan: the rehearsal's, see `rehearsal_plan`.
        roles, layers: what is adapted; None: all layers.

    Raises:
        TrainingError: the loss is not finite.
    """
    loop = Loop(
        classifier,
        split,
        plan,
        training,
        seed=seed,
        accelerator=accelerator,
        loraplus_lr_ratio=loraplus_lr_ratio,
    )
    fit(loop, progress=progress, checkpoints=Path())
    drawn = np.array(sample_rows(len(split), rows, seed))
    sample = Sample(classifier, split, "train", drawn, batch_size, accelerator)
    check_sample(sample)
    importance = np.abs(gate_gradients(sample)).mean(0, dtype=np.float64)  # (L, H)
    by_layer = [float(importance[site.layer, : site.num_heads].mean()) for site in sample.sites]
    accelerator.free_memory()  # lets go of the rehearsal's model and optimiser
    return LayerRanks(
        r=r,
        ranks=_ranks_of_layers(classifier, by_layer, r, adapted_modules(classifier.base, roles, layers)),
        importance=by_layer,
        steps=plan.total_steps,
        rows=len(sample),
    )


def _ranks_of_layers(
    classifier: Classifier, importance: Sequence[float], r: int, adapted: Mapping[int, Sequence[str]]
) -> list[int | None]:
    """Return the rank of each layer, (L,); layers that share their projections (ALBERT) count and pay as one.

    What one adapter does for several layers is worth the sum of their importance.
    """
    shared: dict[tuple[str, ...], list[int]] = {}
    for layer, paths in adapted.items():
        shared.setdefault(tuple(paths), []).append(layer)
    modules = {name: module for name, module in classifier.base.named_modules() if hasattr(module, "lora_A")}
    costs = [sum(_size_of_a_rank(modules[path]) for path in paths) for paths in shared]
    worth = [sum(importance[layer] for layer in served) for served in shared.values()]
    ranks: list[int | None] = [None] * len(importance)
    for rank, served in zip(ranks_by_importance(worth, r, costs), shared.values(), strict=True):
        for layer in served:
            ranks[layer] = rank
    return ranks


def _size_of_a_rank(module: object) -> int:
    """Return how many parameters one rank of a projection's adapter has."""
    a, b = (getattr(module, name)["default"].weight for name in ("lora_A", "lora_B"))
    return int((a.numel() + b.numel()) // a.shape[0])


def written_ranks(file: Path, r: int, layers: int) -> LayerRanks:
    """Return the ranks that a run wrote, for going on with it.

    Raises:
        DataError: the file does not fit this version.
        TrainingError: there is no such file, or its ranks are of another uniform rank or number of layers.
    """
    if not file.is_file():
        raise TrainingError(
            f"no {file.name} in {file.parent}: there is no run with peft.rank_pattern: by_importance to go on with; "
            "correct checkpoint.resume_from_checkpoint, or set peft.rank_pattern as it was"
        )
    found = read_json(file, LayerRanks)
    if (found.r, len(found.ranks)) != (r, layers):
        raise TrainingError(
            f"{file} holds ranks for peft.r {found.r} and {len(found.ranks)} layers, but this run has peft.r {r} and "
            f"{layers} layers; set them as they were, or start anew without checkpoint.resume_from_checkpoint"
        )
    return found
