"""Names of heads: essential, redundant, harmful, unused, each by a test with a controlled false-discovery rate.

Each test is an e-value: a number whose expectation is at most 1 if the name is false (Ramdas et al. 2023; for bounded
variables Waudby-Smith and Ramdas 2024, section 4). It needs independent rows and a lower bound of the tested variable,
but no normal distribution and no large sample: effects of heads have heavy tails, and a t-test that a mean is below a
margin is wrong if a few rows that the sample lacks carry the effect. The Benjamini-Hochberg procedure on 1 / e controls
the false-discovery rate for any dependence between the tests (Wang and Ramdas 2022), and the heads of a model are
dependent.

N rows, L layers, H heads, P pairs of heads
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.heads.importance_estimate import Head
from finetune.runs.head_names import ESSENTIAL, HARMFUL, REDUNDANT, UNUSED, NamedHead
from finetune.runs.multiple_tests import benjamini_hochberg

LEVEL = 0.05
EFFECT_MARGIN = 0.01  # of the score: one percentage point of probability
CHANGE_MARGIN = 0.02  # of the change of the output
ALONE_SHARE = 0.5  # of the joint effect: a redundant head has less than this alone
# Shares of the largest possible bet. The e-value is the mean over them, so that no bet has to be chosen from the rows.
_BETS = (0.98, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class RowEffects:
    """What the removal of heads does to each row.

    Attributes:
        scores: score with all heads, 0 to 1, (N,).
        scores_without: score without each head, (N, L, H); NaN where a layer lacks the head.
        changes: change of the output without each head, 0 to 1, (N, L, H).
        context_changes: the same while a random set of other heads is removed, one set per row, (N, L, H).
        pairs: pairs of heads that other rows chose.
        pair_scores: score without both heads of a pair, (N, P).
    """

    scores: np.ndarray
    scores_without: np.ndarray
    changes: np.ndarray
    context_changes: np.ndarray
    pairs: tuple[tuple[Head, Head], ...]
    pair_scores: np.ndarray

    def subset(self, rows: np.ndarray) -> RowEffects:
        """Return the effects on some of the rows."""
        arrays = {
            name: getattr(self, name)[rows]
            for name in ("scores", "scores_without", "changes", "context_changes", "pair_scores")
        }
        return replace(self, **arrays)

    def effects(self) -> np.ndarray:
        """Return the score of each row with all heads minus its score without each head, (N, L, H)."""
        effects: np.ndarray = self.scores[:, None, None] - self.scores_without
        return effects

    def heads(self) -> list[Head]:
        """Return all heads of the model."""
        layers, heads = np.nonzero(~np.isnan(self.scores_without).all(0))
        return list(zip(layers.tolist(), heads.tolist(), strict=True))


@dataclass(frozen=True)
class Hypothesis:
    """That a head has a name: the means of all its variables are above their limits.

    Attributes:
        variables: per variable its values (N,), the limit of its mean, and the lowest value that it can have.
    """

    head: Head
    name: str
    variables: list[tuple[np.ndarray, float, float]]
    partner: Head | None = None
    joint_effect: float | None = None

    def log_e_value(self) -> float:
        """Return the smallest log e-value of its variables, which is valid for all of them together."""
        return min(log_e_value(values, limit, lowest) for values, limit, lowest in self.variables)


def log_e_value(values: np.ndarray, limit: float, lowest: float) -> float:
    """Return the logarithm of an e-value against the hypothesis that the mean is at most `limit`.

    It is log((1/B) sum over b of prod over rows of (1 + b (x - limit))), with B bets b from 0 to 1 / (limit - lowest).

    Args:
        values: values of independent rows, (N,), each at least `lowest`.
    """
    bets = np.array(_BETS) / (limit - lowest)
    logs = np.log1p(bets[:, None] * (values - limit)).sum(1)
    return float(np.logaddexp.reduce(logs) - np.log(len(logs)))


def hypotheses(effects: RowEffects) -> Iterator[Hypothesis]:
    """Yield the hypotheses of all heads and pairs; `docs/head-analysis.md` has the formulas."""
    by_head = effects.effects()
    for head in effects.heads():
        effect = by_head[:, *head]
        yield Hypothesis(head, ESSENTIAL, [(effect, EFFECT_MARGIN, -1)])
        yield Hypothesis(head, HARMFUL, [(-effect, EFFECT_MARGIN, -1)])
        unchanged = [1 - changes[:, *head] for changes in (effects.changes, effects.context_changes)]
        yield Hypothesis(head, UNUSED, [(values, 1 - CHANGE_MARGIN, 0) for values in unchanged])
    for pair, scores in zip(effects.pairs, effects.pair_scores.T, strict=True):
        joint = effects.scores - scores
        first, second = (by_head[:, *head] for head in pair)
        variables = [(joint - first - second, EFFECT_MARGIN, -2.0)]
        variables += [(ALONE_SHARE * joint - alone, 0.0, -1.0) for alone in (first, second)]
        for head, partner in (pair, pair[::-1]):
            yield Hypothesis(head, REDUNDANT, variables, partner, float(joint.mean()))


def assign_names(effects: RowEffects, level: float = LEVEL) -> tuple[list[NamedHead], int]:
    """Return the heads that have a name, lowest q-value first, and the number of tests."""
    tested = list(hypotheses(effects))
    e_values = np.array([hypothesis.log_e_value() for hypothesis in tested])
    q_values = benjamini_hochberg(np.exp(-e_values.clip(min=0)))
    means = effects.effects().mean(0)
    named = [
        NamedHead(
            *hypothesis.head,
            hypothesis.name,
            float(q_value),
            float(means[hypothesis.head]),
            hypothesis.partner,
            hypothesis.joint_effect,
        )
        for hypothesis, q_value in zip(tested, q_values, strict=True)
        if q_value <= level
    ]
    return _best_partners(sorted(named, key=lambda each: (each.q_value, each.layer, each.head))), len(tested)


def _best_partners(named: Sequence[NamedHead]) -> list[NamedHead]:
    """Return the names with one partner per redundant head: the one with the largest joint effect."""
    best: dict[tuple[int, int, str], NamedHead] = {}
    for each in named:
        key = (each.layer, each.head, each.name)
        if key not in best or (each.joint_effect or 0) > (best[key].joint_effect or 0):
            best[key] = each
    return list(best.values())
