"""Pruning curves: the metric on held-out rows while heads are removed in the order of a ranking.

L layers, H heads
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import Tensor

from finetune.evaluation.metrics import compute_metrics
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.heads.importance_estimate import Head, last_heads_last
from finetune.models.attention_sites import all_heads
from finetune.models.losses import decisions
from finetune.progress import stage
from finetune.recipe.named_metrics import lower_is_better
from finetune.runs.head_results import PruningCurve, PruningCurves, RandomBand

SHARES = tuple(tenth / 10 for tenth in range(1, 10))
MAX_HEADS_BY_COUNT = 16  # up to this number of heads, a curve also has the score after each single removal


@dataclass(frozen=True)
class CurveSettings:
    """Which pruning curves are computed.

    Attributes:
        metric: a metric of the problem type; error metrics are negated, so that higher is better.
        random_orders: number of random orders to compare with.
        reverse: also remove the most important heads first.
        shares: of all heads removed, 0 to 1, one per point of a curve.
        seed: of the random orders.
    """

    metric: str
    random_orders: int
    reverse: bool = True
    shares: Sequence[float] = SHARES
    seed: int = 0


def pruning_curves(sample: GatedRows, orders: Mapping[str, Sequence[Head]], settings: CurveSettings) -> PruningCurves:
    """Return the pruning curve of each order and of its reverse, and the band of random orders.

    Heads are removed by gates of 0. In every order each layer keeps its last head until all layers are down to one.

    Args:
        sample: rows that were not used for the rankings.
        orders: all heads by method, least important first.
    """
    score_gates, curves = scorer(sample, settings.metric), []

    @cache
    def score_without(heads: frozenset[Head]) -> float:
        """Return the score without these heads; orders of few heads often remove the same ones."""
        return score_gates(gates_without(sample, sorted(heads)))

    num_orders = len(orders) * (2 if settings.reverse else 1) + settings.random_orders
    counts = range(1, len(heads)) if len(heads := all_heads(sample.sites)) <= MAX_HEADS_BY_COUNT else range(0)
    passes = num_orders * len(settings.shares) + len(orders) * len(counts)
    with stage("pruning curves", total=passes) as progress:

        def curve(order: Sequence[Head]) -> list[float]:
            scores = []
            for share in settings.shares:
                scores.append(score_without(frozenset(removed(order, share))))
                progress.advance()
            return scores

        def by_count(order: Sequence[Head]) -> list[float]:
            """Return the score after removing each number of heads."""
            progress.advance(len(counts))
            return [score_without(frozenset(order[:number])) for number in counts]

        for method, order in orders.items():
            scores = curve(order)
            reversed_scores = curve(last_heads_last(order[::-1], sample.sites)) if settings.reverse else []
            reversed_mean = float(np.mean(reversed_scores)) if reversed_scores else None
            counted = by_count(order)
            curves.append(PruningCurve(method, scores, float(np.mean(scores)), reversed_mean, counted, reversed_scores))
        band = [curve(random_order(sample, settings.seed + number)) for number in range(settings.random_orders)]
    return PruningCurves(
        metric=settings.metric,
        split=sample.split_name,
        rows=len(sample),
        whole=score_without(frozenset()),
        shares=list(settings.shares),
        curves=curves,
        random=_random_band(np.array(band)) if band else None,
    )


def scorer(sample: GatedRows, metric: str) -> Callable[[Tensor], float]:
    """Return a function from gates (L, H) to the metric on the rows of the sample, negated if lower is better."""
    sign = -1.0 if lower_is_better(metric) else 1.0

    def score(gates: Tensor) -> float:
        logits = gated_logits(sample, gates)
        decided = decisions(logits, sample.problem_type).numpy()
        value = compute_metrics(decided, sample.labels, sample.problem_type, logits.shape[-1])[metric]
        # A correlation is undefined (NaN) if all predictions are equal; they then explain nothing.
        return sign * (0.0 if math.isnan(value) else value)

    return score


def removed(order: Sequence[Head], share: float) -> list[Head]:
    """Return the heads that are removed at this share, rounded to a whole number; at least one head always remains."""
    return list(order[: min(round(share * len(order)), len(order) - 1)])


def gates_without(sample: GatedRows, heads: Sequence[Head]) -> Tensor:
    """Return gates (L, H): 0 for these heads, 1 for all others."""
    gates = sample.gates()
    for head in heads:
        gates[head] = 0
    return gates


def random_order(sample: GatedRows, seed: int) -> list[Head]:
    """Return all heads in random order, the last head of each layer at the end."""
    heads = all_heads(sample.sites)
    shuffled = np.random.default_rng(seed).permutation(len(heads))
    return last_heads_last([heads[index] for index in shuffled], sample.sites)


def _random_band(scores: np.ndarray) -> RandomBand:
    """Return mean, minimum and maximum over random orders of scores (orders, shares)."""
    means = scores.mean(1)
    return RandomBand(
        orders=len(scores),
        mean_scores=scores.mean(0).tolist(),
        low=scores.min(0).tolist(),
        high=scores.max(0).tolist(),
        mean=float(means.mean()),
        spread=float(means.std(ddof=1)) if len(means) > 1 else None,
        highest_mean=float(means.max()),
    )
