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

from finetune.heads.ablation import MEASURES, ablation
from finetune.heads.attention_maps import confidence, entropy
from finetune.heads.estimate import (
    Estimate,
    Head,
    as_table,
    last_heads_last,
    layer_normalized,
    mean_over_rows,
    removal_order,
)
from finetune.heads.gated_forward import GatedRows, broadcast_decision, check_all_ones
from finetune.heads.gradients import fisher, gradient, integrated_gradients, path_gradients
from finetune.heads.learned import learned_gates, learned_order
from finetune.heads.ranking_statistics import fold_stability, split_half_stability
from finetune.heads.shapley import shapley_values
from finetune.models.head_gates import head_gates
from finetune.runs.head_results import HeadScores, TauValue

ITERATIVE = "iterative_"
_GATE_STEPS, _ORDER_STEPS = 40, 8  # of each fold


@dataclass(frozen=True)
class Budget:
    """How much is done: passes along a path, the seed of what is drawn, and time for what is learned in steps."""

    steps: int
    seed: int
    max_seconds: float | None = None


@dataclass(frozen=True)
class Method:
    """How heads are ranked: the formula of a head's value, and the function that estimates it.

    Attributes:
        measure: from rows and budget to an estimate.
        learned: whether it learns in steps and keeps to the time itself, instead of being a mean over rows.
        finish: what is done to the mean over all rows, which may have been measured in blocks.
        again: the same for measuring again as heads go, where it can be had for less; None: `measure`.
    """

    formula: str
    measure: Callable[[GatedRows, Budget], Estimate]
    finish: Callable[[Estimate], Estimate] = lambda estimate: estimate
    learned: bool = False
    again: Callable[[GatedRows, Budget], Estimate] | None = None


def random_values(sample: GatedRows, seed: int) -> Estimate:
    """Return a random ranking: what every other has to beat."""
    return Estimate(np.random.default_rng(seed).random(tuple(sample.gates().shape)))


def ablated(sample: GatedRows, measure: str) -> Estimate:
    """Return what the loss, the prediction or accuracy loses without each head, all others in place."""
    return mean_over_rows(MEASURES[measure](ablation(sample)))


def shapley(sample: GatedRows, seed: int) -> Estimate:
    """Return Shapley values, with what is known of their precision."""
    found = shapley_values(sample, seed=seed)
    error = found.standard_errors
    told = "" if error is None else f"; of the error over rows, up to {np.nanmax(error):.2g} is from the draw of these"
    missed = "" if found.converged else ", more than which were needed for the precision asked for"
    return mean_over_rows(found.contributions, f"{found.permutations} permutations a row{missed}{told}")


METHODS: dict[str, Method] = {
    "gradient": Method("E|dL/dgate|", lambda sample, budget: gradient(sample)),
    "gradient_layer_norm": Method(
        "E|dL/dgate| over the layer's norm", lambda sample, budget: gradient(sample), layer_normalized
    ),
    "integrated_gradients": Method(
        "share of L(0) - L(1)",
        lambda sample, budget: integrated_gradients(sample, budget.steps, seed=budget.seed),
        again=lambda sample, budget: mean_over_rows(
            -path_gradients(sample, sample.gates(), budget.steps, seed=budget.seed)
        ),
    ),
    "fisher": Method("E(dL/dgate)^2", lambda sample, budget: fisher(sample)),
    "ablation_loss": Method("L without the head - L", lambda sample, budget: ablated(sample, "loss")),
    "ablation_kl": Method("KL(p || p without the head)", lambda sample, budget: ablated(sample, "kl")),
    "ablation_accuracy": Method("accuracy - accuracy without", lambda sample, budget: ablated(sample, "accuracy")),
    "shapley": Method("Shapley value for the loss", lambda sample, budget: shapley(sample, budget.seed)),
    "confidence": Method("mean largest attention weight", lambda sample, budget: confidence(sample)),
    "entropy": Method("minus entropy of attention, nats", lambda sample, budget: entropy(sample)),
    "gates": Method(
        "log-odds of a learned gate",
        lambda sample, budget: learned_gates(sample, _GATE_STEPS, seed=budget.seed, max_seconds=budget.max_seconds),
        learned=True,
    ),
    "learned_order": Method(
        "score learned by removal",
        lambda sample, budget: learned_order(sample, _ORDER_STEPS, budget.seed, budget.max_seconds),
        learned=True,
    ),
    "random": Method("chance", lambda sample, budget: random_values(sample, budget.seed)),
}


def measure_importance(
    sample: GatedRows, method: str, *, steps: int, seed: int, max_seconds: float | None = None
) -> HeadScores:
    """Return the importance of every head by one method.

    Args:
        method: a name in METHODS, or `iterative_` before it.
        steps: passes over the rows for a method that follows a path.
        max_seconds: time after which no further rows are taken, and no further step by what is learned; None: no
            bound.
    """
    started = time.perf_counter()
    check_all_ones(sample)
    name = method.removeprefix(ITERATIVE)
    chosen = METHODS[name]

    estimator = chosen.again if method.startswith(ITERATIVE) and chosen.again else chosen.measure

    def estimate(rows: GatedRows) -> Estimate:
        return estimator(rows, Budget(steps, seed, max_seconds))

    if method.startswith(ITERATIVE):
        found, rows = _measured_again(sample, lambda rows: chosen.finish(estimate(rows)), max_seconds, seed)
        formula, stable = f"{chosen.formula}, measured again as heads go", None
    else:
        bound = None if chosen.learned else max_seconds
        found, rows = _within(sample, estimate, bound, seed)
        stable = _stability(found, chosen, seed)
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
        errors_over="rows" if found.folds is None else f"{len(found.folds)} folds",
        stability=stable,
        note=found.note,
    )


def _stability(found: Estimate, method: Method, seed: int) -> TauValue | None:
    if found.folds is not None:
        return fold_stability(found.folds)
    if found.contributions is None:
        return None
    return split_half_stability(found.contributions, finish=method.finish, seed=seed)


def _measured_again(
    sample: GatedRows, estimate: Callable[[GatedRows], Estimate], max_seconds: float | None, seed: int
) -> tuple[Estimate, int]:
    """Return the estimate of a method measured again as heads go, and the rows it took."""
    base, sites, rounds = sample.classifier.base, sample.sites, 10
    rows = sample
    if max_seconds is not None:
        _, measured = _within(sample, estimate, max_seconds / rounds, seed)  # what one round can take
        rows = sample.subset(_shuffled(sample, seed)[:measured])

    def scorer(gates: torch.Tensor) -> Estimate:
        with head_gates(base, sites, gates, check_calls=False):
            return estimate(rows)

    return iterative(rows, scorer, rounds), len(rows)


def _within(
    sample: GatedRows, estimate: Callable[[GatedRows], Estimate], max_seconds: float | None, seed: int
) -> tuple[Estimate, int]:
    """Return the estimate from as many rows as fit the time, in blocks of random rows, and their number."""
    if max_seconds is None:
        return estimate(sample), len(sample)
    rows, size, done, parts = _shuffled(sample, seed), 4 * sample.batch_size, 0, []
    found, started = Estimate(np.array([])), time.perf_counter()
    while done < len(rows):
        found = estimate(sample.subset(np.sort(rows[done : done + size])))
        done = min(len(rows), done + size)
        if found.contributions is None:  # not a mean over rows: blocks cannot be put together
            break
        parts.append(found.contributions)
        if broadcast_decision(sample.accelerator, time.perf_counter() - started > max_seconds):
            break
    note = f"measured in {len(parts)} blocks of rows; of the last: {found.note}" if len(parts) > 1 else found.note
    return (mean_over_rows(np.concatenate(parts), note if found.note else "") if parts else found), done


def _shuffled(sample: GatedRows, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(sample.rows)


Scorer = Callable[[torch.Tensor], Estimate]


def iterative(sample: GatedRows, scorer: Scorer, rounds: int = 10) -> Estimate:
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
