"""The test of a ranking: remove heads in its order, and score rows that it did not see.

N rows, L layers, H heads
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from finetune.evaluation.metrics import compute_metrics
from finetune.heads.estimate import Head, last_heads_last
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.models.losses import decisions
from finetune.recipe import LOWER_IS_BETTER
from finetune.runs.head_results import PruningCurve, PruningCurves, RandomBand

SHARES = tuple(tenth / 10 for tenth in range(1, 10))


def pruning_curves(
    sample: GatedRows,
    orders: Mapping[str, Sequence[Head]],
    metric: str,
    *,
    random_orders: int,
    reverse: bool = True,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> PruningCurves:
    """Return the pruning curve of each order, its reverse, and the band of random orders.

    Heads are removed by gates of 0. In every order a layer keeps its last head until all layers are down to one.

    Args:
        sample: rows that no ranking saw.
        orders: heads by method, least important first.
        metric: of the classifier's problem type; an error (lower is better) is negated.
    """
    score = scorer(sample, metric)

    def curve(order: Sequence[Head]) -> list[float]:
        return [score(gates_without(sample, removed(order, share))) for share in shares]

    curves = []
    for method, order in orders.items():
        scores = curve(order)
        backwards = curve(last_heads_last(order[::-1], sample.sites)) if reverse else None
        mean_backwards = None if backwards is None else float(np.mean(backwards))
        curves.append(PruningCurve(method, scores, float(np.mean(scores)), mean_backwards))
    band = [curve(random_order(sample, seed + number)) for number in range(random_orders)]
    return PruningCurves(
        metric=metric,
        split=sample.split_name,
        rows=len(sample),
        whole=score(sample.gates()),
        shares=list(shares),
        curves=curves,
        random=_band(np.array(band)) if band else None,
    )


def scorer(sample: GatedRows, metric: str) -> Callable[[Tensor], float]:
    """Return a function from gates (L, H) to the metric on the sample's rows, negated if it is an error."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def score(gates: Tensor) -> float:
        logits = gated_logits(sample, gates)
        decided = decisions(logits, sample.problem_type).numpy()
        value = compute_metrics(decided, sample.labels, sample.problem_type, logits.shape[-1])[metric]
        # A correlation is undefined where the heads that are left predict the same for every row: nothing is explained.
        return sign * (0.0 if math.isnan(value) else value)

    return score


def removed(order: Sequence[Head], share: float) -> list[Head]:
    """Return the heads that go when this share of all is removed, to the nearest whole number; one stays always."""
    return list(order[: min(round(share * len(order)), len(order) - 1)])


def gates_without(sample: GatedRows, heads: Sequence[Head]) -> Tensor:
    """Return gates (L, H) of 1, and 0 for these heads."""
    gates = sample.gates()
    for at in heads:
        gates[at] = 0
    return gates


def random_order(sample: GatedRows, seed: int) -> list[Head]:
    """Return all heads in random order, each layer's last head at the end."""
    heads = [(site.layer, head) for site in sample.sites for head in range(site.num_heads)]
    shuffled = np.random.default_rng(seed).permutation(len(heads))
    return last_heads_last([heads[place] for place in shuffled], sample.sites)


def _band(scores: np.ndarray) -> RandomBand:
    """Return the band of scores (orders, shares)."""
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
