"""The methods by which heads are ranked, by name.

A method goes from a sample of rows to an `Estimate`. Those whose name starts with `iterative_` measure again as
heads go; see iterative.py.

N rows, L layers, H heads
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from finetune.head_results import HeadScores
from finetune.heads.ablation import MEASURES, ablation
from finetune.heads.attention_maps import confidence, entropy
from finetune.heads.estimate import Estimate, as_table, layer_normalised, mean_over_rows, removal_order
from finetune.heads.gates import removed_heads
from finetune.heads.gradients import fisher, gradient, integrated_gradients, path_gradients
from finetune.heads.iterative import iterative
from finetune.heads.learned import learned_gates
from finetune.heads.learned_order import learned_order
from finetune.heads.sample import Sample, check_sample
from finetune.heads.shapley import shapley_values
from finetune.heads.stability import split_half_stability

ITERATIVE = "iterative_"
_GATE_STEPS, _ORDER_STEPS = 40, 8  # of each fold


@dataclass(frozen=True)
class Method:
    """How heads are ranked: the formula of a head's value, and the function that estimates it.

    Attributes:
        measure: from rows, steps of a path and seed.
        finish: what is done to the mean over all rows, which may have been measured in blocks.
        again: the same for measuring again as heads go, where it can be had for less; None: `measure`.
    """

    formula: str
    measure: Callable[[Sample, int, int], Estimate]
    finish: Callable[[Estimate], Estimate] = lambda estimate: estimate
    again: Callable[[Sample, int, int], Estimate] | None = None


def random_values(sample: Sample, seed: int) -> Estimate:
    """Return a random ranking: what every other has to beat."""
    return Estimate(np.random.default_rng(seed).random(tuple(sample.gates().shape)))


def ablated(sample: Sample, measure: str) -> Estimate:
    """Return what the loss, the prediction or accuracy loses without each head, all others in place."""
    return mean_over_rows(MEASURES[measure](ablation(sample)))


def shapley(sample: Sample, seed: int) -> Estimate:
    """Return Shapley values, with what is known of their precision."""
    found = shapley_values(sample, seed=seed)
    error = found.standard_errors
    told = "" if error is None else f", which leaves a standard error of {np.nanmax(error):.2g} besides that over rows"
    return mean_over_rows(found.contributions, f"{found.permutations} permutations a row{told}")


METHODS: dict[str, Method] = {
    "gradient": Method("E|dL/dgate|", lambda sample, steps, seed: gradient(sample)),
    "gradient_layer_norm": Method(
        "E|dL/dgate| over the layer's norm", lambda sample, steps, seed: gradient(sample), layer_normalised
    ),
    "integrated_gradients": Method(
        "share of L(0) - L(1)",
        lambda sample, steps, seed: integrated_gradients(sample, steps),
        again=lambda sample, steps, seed: mean_over_rows(-path_gradients(sample, sample.gates(), steps)),
    ),
    "fisher": Method("E(dL/dgate)^2", lambda sample, steps, seed: fisher(sample)),
    "ablation_loss": Method("L without the head - L", lambda sample, steps, seed: ablated(sample, "loss")),
    "ablation_kl": Method("KL(p || p without the head)", lambda sample, steps, seed: ablated(sample, "kl")),
    "ablation_accuracy": Method("accuracy - accuracy without", lambda sample, steps, seed: ablated(sample, "accuracy")),
    "shapley": Method("Shapley value for the loss", lambda sample, steps, seed: shapley(sample, seed)),
    "confidence": Method("mean largest attention weight", lambda sample, steps, seed: confidence(sample)),
    "entropy": Method("minus entropy of attention, nats", lambda sample, steps, seed: entropy(sample)),
    "gates": Method(
        "log-odds of a learned gate", lambda sample, steps, seed: learned_gates(sample, _GATE_STEPS, seed=seed)
    ),
    "learned_order": Method(
        "score learned by removal", lambda sample, steps, seed: learned_order(sample, _ORDER_STEPS, seed)
    ),
    "random": Method("chance", lambda sample, steps, seed: random_values(sample, seed)),
}


def measure_importance(
    sample: Sample, method: str, *, steps: int, seed: int, max_seconds: float | None = None
) -> HeadScores:
    """Return the importance of every head by one method.

    Args:
        method: a name in METHODS, or `iterative_` before it.
        steps: passes over the rows for a method that follows a path.
        max_seconds: time after which no further rows are taken; None: all rows of the sample are.
    """
    started = time.perf_counter()
    check_sample(sample)
    name = method.removeprefix(ITERATIVE)
    chosen = METHODS[name]

    estimator = chosen.again if method.startswith(ITERATIVE) and chosen.again else chosen.measure

    def estimate(rows: Sample) -> Estimate:
        return estimator(rows, steps, seed)

    if method.startswith(ITERATIVE):
        found, rows = _measured_again(sample, lambda rows: chosen.finish(estimate(rows)), max_seconds, seed)
        formula = f"{chosen.formula}, measured again as heads go"
    else:
        found, rows = _within(sample, estimate, max_seconds, seed)
        found = chosen.finish(found)
        formula = chosen.formula
    sites = sample.sites
    return HeadScores(
        method=method,
        formula=formula,
        split=sample.split_name,
        rows=0 if name == "random" else rows,
        values=as_table(found.values, sites),
        standard_errors=as_table(found.errors, sites),
        order=list(found.order or removal_order(found.values, sites)),
        seconds=time.perf_counter() - started,
        stability=None if found.contributions is None else split_half_stability(found.contributions, seed=seed),
        note=found.note,
    )


def _measured_again(
    sample: Sample, estimate: Callable[[Sample], Estimate], max_seconds: float | None, seed: int
) -> tuple[Estimate, int]:
    """Return the estimate of a method measured again as heads go, and the rows it took."""
    base, sites, rounds = sample.classifier.base, sample.sites, 10
    rows = sample
    if max_seconds is not None:
        _, measured = _within(sample, estimate, max_seconds / rounds, seed)  # what one round can take
        rows = sample.only(_shuffled(sample, seed)[:measured])

    def scorer(gates: torch.Tensor) -> Estimate:
        with removed_heads(base, sites, gates):
            return estimate(rows)

    return iterative(rows, scorer, rounds), len(rows)


def _within(
    sample: Sample, estimate: Callable[[Sample], Estimate], max_seconds: float | None, seed: int
) -> tuple[Estimate, int]:
    """Return the estimate from as many rows as fit the time, in blocks of random rows, and their number."""
    if max_seconds is None:
        return estimate(sample), len(sample)
    rows, size, done, parts = _shuffled(sample, seed), 4 * sample.batch_size, 0, []
    found, started = Estimate(np.array([])), time.perf_counter()
    while done < len(rows):
        found = estimate(sample.only(np.sort(rows[done : done + size])))
        done = min(len(rows), done + size)
        if found.contributions is None:  # not a mean over rows: blocks cannot be put together
            break
        parts.append(found.contributions)
        late = [time.perf_counter() - started > max_seconds]
        if sample.accelerator.num_processes > 1:
            broadcast_object_list(late)  # all stop together
        if late[0]:
            break
    note = f"measured in {len(parts)} blocks of rows; of the last: {found.note}" if len(parts) > 1 else found.note
    return (mean_over_rows(np.concatenate(parts), note if found.note else "") if parts else found), done


def _shuffled(sample: Sample, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(sample.rows)
