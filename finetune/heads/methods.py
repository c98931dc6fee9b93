"""The methods that rank heads: a function for each name in `recipe.names.HEAD_METHODS`, and the iterative variants.

A method is a function from rows to an `Estimate`. Its `iterative_` variant removes the least important tenth of the
heads, scores the remaining heads again, and so on.

    L layers, H heads
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune.heads.ablation import MEASURES, ablation
from finetune.heads.attention_maps import confidence, entropy
from finetune.heads.gated_forward import GatedRows, broadcast_decision, check_all_ones
from finetune.heads.gradients import fisher, gradient, integrated_gradients, path_gradients
from finetune.heads.importance_estimate import (
    Estimate,
    Head,
    as_table,
    last_heads_last,
    layer_normalized,
    mean_over_rows,
    removal_order,
)
from finetune.heads.learned import learned_gates
from finetune.heads.learned_order import learned_order
from finetune.heads.ranking_statistics import fold_stability, split_half_stability
from finetune.heads.shapley import shapley_values
from finetune.models.head_gates import head_gates
from finetune.progress import stage
from finetune.recipe.head_costs import GATE_STEPS, ROUNDS, ROW_PASSES
from finetune.recipe.names import HEAD_METHODS, ITERATIVE
from finetune.runs.head_results import HeadScores, TauValue


@dataclass(frozen=True)
class Budget:
    """How much to compute.

    Attributes:
        steps: passes along a path.
        seed: of random draws.
        max_seconds: time limit of the learned methods; None: no limit.
        row_passes: largest number of forward and backward passes of one row that `learned_order` makes; None: its own
            default.
    """

    steps: int
    seed: int
    max_seconds: float | None = None
    row_passes: int | None = None


@dataclass(frozen=True)
class Method:
    """How heads are ranked.

    Attributes:
        measure: from rows and a budget to an estimate.
        finish: applied to the mean over all rows, which may have been measured in blocks of rows.
        learned: the method is trained in steps and keeps to the time limit itself; it is not a mean over rows.
        measure_round: a cheaper `measure` for the rounds of the iterative variant; None: the same.
    """

    measure: Callable[[GatedRows, Budget], Estimate]
    finish: Callable[[Estimate], Estimate] = lambda estimate: estimate
    learned: bool = False
    measure_round: Callable[[GatedRows, Budget], Estimate] | None = None


def random_values(sample: GatedRows, seed: int) -> Estimate:
    """Return a random ranking, the baseline that every other method must beat."""
    return Estimate(np.random.default_rng(seed).random(tuple(sample.gates().shape)))


def ablated(sample: GatedRows, measure: str) -> Estimate:
    """Return the rise of the loss, the KL divergence or the drop of the accuracy without each head, (L, H).

    Michel, Levy and Neubig 2019, section 3.2, where the measure is the accuracy or the BLEU score.

    Args:
        measure: loss, kl or accuracy.
    """
    return mean_over_rows(MEASURES[measure](ablation(sample)))


def shapley(sample: GatedRows, seed: int) -> Estimate:
    """Return the Shapley value of each head, (L, H), with a note on its precision (Shapley 1953; see `shapley.py`)."""
    result = shapley_values(sample, seed=seed)
    error = result.standard_errors
    noise = "" if error is None else f"; the standard error from their random choice is at most {np.nanmax(error):.2g}"
    limit = "" if result.converged else ", not enough for the required precision"
    return mean_over_rows(result.contributions, f"{result.permutations} permutations per row{limit}{noise}")


METHODS: dict[str, Method] = {
    "gradient": Method(lambda sample, budget: gradient(sample)),
    "gradient_layer_norm": Method(lambda sample, budget: gradient(sample), layer_normalized),
    "integrated_gradients": Method(
        lambda sample, budget: integrated_gradients(sample, budget.steps, seed=budget.seed),
        measure_round=lambda sample, budget: mean_over_rows(
            -path_gradients(sample, sample.gates(), budget.steps, seed=budget.seed)
        ),
    ),
    "fisher": Method(lambda sample, budget: fisher(sample)),
    "ablation_loss": Method(lambda sample, budget: ablated(sample, "loss")),
    "ablation_kl": Method(lambda sample, budget: ablated(sample, "kl")),
    "ablation_accuracy": Method(lambda sample, budget: ablated(sample, "accuracy")),
    "shapley": Method(lambda sample, budget: shapley(sample, budget.seed)),
    "confidence": Method(lambda sample, budget: confidence(sample)),
    "entropy": Method(lambda sample, budget: entropy(sample)),
    "gates": Method(
        lambda sample, budget: learned_gates(sample, GATE_STEPS, seed=budget.seed, max_seconds=budget.max_seconds),
        learned=True,
    ),
    "learned_order": Method(
        lambda sample, budget: learned_order(
            sample, ROW_PASSES if budget.row_passes is None else budget.row_passes, budget.seed, budget.max_seconds
        ),
        learned=True,
    ),
    "random": Method(lambda sample, budget: random_values(sample, budget.seed)),
}


def measure_importance(
    sample: GatedRows,
    name: str,
    *,
    steps: int,
    seed: int,
    max_seconds: float | None = None,
    row_passes: int | None = None,
) -> HeadScores:
    """Return the importance of every head by one method.

    Args:
        name: one of `recipe.names.HEAD_METHOD_NAMES`.
        steps: passes over the rows for integrated gradients.
        max_seconds: time after which no further rows are measured and no further step is trained; None: no limit.
        row_passes: largest number of row passes of `learned_order` (see `recipe.head_costs`); None: its full number.
    """
    started = time.perf_counter()
    with stage(name):
        check_all_ones(sample)
        base_name = name.removeprefix(ITERATIVE)
        method, formula = METHODS[base_name], HEAD_METHODS[base_name].formula
        budget = Budget(steps, seed, max_seconds, row_passes)
        if name == base_name:
            estimate, num_rows = _measure_in_time(
                sample,
                lambda rows: method.measure(rows, budget),
                None if method.learned else max_seconds,
                seed,
            )
            stability = _stability(estimate, method, seed)
            estimate = method.finish(estimate)
        else:
            estimate, num_rows = _measure_iteratively(sample, method, budget)
            formula, stability = f"{formula}, measured again after each removal", None
    sites = sample.sites
    return HeadScores(
        method=name,
        formula=formula,
        split=sample.split_name,
        rows=0 if base_name == "random" else num_rows,
        values=as_table(estimate.values, sites),
        standard_errors=as_table(estimate.errors, sites),
        order=list(estimate.order or removal_order(estimate.values, sites)),
        seconds=time.perf_counter() - started,
        errors_over="rows" if estimate.folds is None else f"{len(estimate.folds)} folds",
        stability=stability,
        note=estimate.note,
    )


def _stability(estimate: Estimate, method: Method, seed: int) -> TauValue | None:
    """Return how well rankings from different rows agree; None where the estimate does not depend on rows."""
    if estimate.folds is not None:
        return fold_stability(estimate.folds)
    if estimate.contributions is None:
        return None
    return split_half_stability(estimate.contributions, finish=method.finish, seed=seed)


def _measure_in_time(
    sample: GatedRows, measure: Callable[[GatedRows], Estimate], max_seconds: float | None, seed: int
) -> tuple[Estimate, int]:
    """Return the estimate from as many rows as the time allows, in blocks of random rows, and their number."""
    if max_seconds is None:
        return measure(sample), len(sample)
    rows, block, done, parts = _shuffled(sample, seed), 4 * sample.batch_size, 0, []
    estimate, started = Estimate(np.array([])), time.perf_counter()
    while done < len(rows):
        estimate = measure(sample.subset(np.sort(rows[done : done + block])))
        done = min(len(rows), done + block)
        if estimate.contributions is None:  # not a mean over rows: the blocks cannot be combined
            break
        parts.append(estimate.contributions)
        if broadcast_decision(sample.accelerator, time.perf_counter() - started > max_seconds):
            break
    if not parts:
        return estimate, done
    note = estimate.note
    if note and len(parts) > 1:
        note = f"measured in {len(parts)} blocks of rows; note of the last block: {note}"
    return mean_over_rows(np.concatenate(parts), note), done


def _shuffled(sample: GatedRows, seed: int) -> np.ndarray:
    """Return the row indices of the sample in random order."""
    return np.random.default_rng(seed).permutation(sample.rows)


def _measure_iteratively(sample: GatedRows, method: Method, budget: Budget) -> tuple[Estimate, int]:
    """Return the estimate of a method's iterative variant, and the number of rows it used."""
    measure = method.measure_round or method.measure

    def estimate_of(rows: GatedRows) -> Estimate:
        return method.finish(measure(rows, budget))

    rows = sample
    if budget.max_seconds is not None:  # find out how many rows fit into the time of one round
        _, num_rows = _measure_in_time(sample, estimate_of, budget.max_seconds / ROUNDS, budget.seed)
        rows = sample.subset(_shuffled(sample, budget.seed)[:num_rows])

    def score(gates: torch.Tensor) -> Estimate:
        with head_gates(sample.classifier.base, sample.sites, gates, check_calls=False):
            return estimate_of(rows)

    return iterative(sample, score, ROUNDS), len(rows)


def iterative(sample: GatedRows, score: Callable[[torch.Tensor], Estimate], rounds: int = ROUNDS) -> Estimate:
    """Return the order in which heads are removed if the remaining heads are scored again in every round.

    Michel, Levy and Neubig 2019, section 4.1, where the score is the gradient. Each layer keeps its last head until
    the end. The value of a head is its score in the round of its removal, or the highest score of a head removed
    before it, so that values rise along the order; it has an error only where the value is its own score.

    Args:
        score: from the gates (L, H), which are 0 for removed heads, to the estimate for the remaining heads.
        rounds: number of parts in which the heads are removed. The last two parts follow the same scores: by then
            little more than the last head of each layer remains.
    """
    sites, gates = sample.sites, sample.gates()
    heads = sum(site.num_heads for site in sites)
    removed: list[Head] = []
    values, errors = np.full(gates.shape, np.nan), np.full(gates.shape, np.nan)
    highest, estimate = -np.inf, Estimate(values)
    with stage("rounds", total=rounds) as progress:
        for number in range(1, rounds + 1):
            count = round(heads * number / rounds) - len(removed)
            if count > 0 and (number < rounds or rounds == 1):  # 0 where there are fewer heads than rounds
                estimate = score(gates)
            for head in _next_removed(estimate.values, removed, gates, sample)[:count]:
                highest = max(highest, float(estimate.values[head]))
                values[head] = highest
                if estimate.errors is not None and estimate.values[head] == highest:
                    errors[head] = estimate.errors[head]
                gates[head] = 0
                removed.append(head)
            progress.advance()
    return Estimate(values, None if np.isnan(errors).all() else errors, order=tuple(removed))


def _next_removed(values: np.ndarray, removed: Sequence[Head], gates: torch.Tensor, sample: GatedRows) -> list[Head]:
    """Return the remaining heads in the order of removal by these values, the last head of each layer at the end."""
    ranked = removal_order(values, sample.sites, keep_one=False)
    remaining = [head for head in ranked if gates[head] > 0]
    order = last_heads_last([*removed, *remaining], sample.sites)
    already = set(removed)
    return [head for head in order if head not in already]
