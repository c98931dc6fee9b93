"""Statistics of rankings and of single heads: paired tests, agreement of two rankings, stability over rows.

N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy import stats
from scipy.stats import kendalltau

from finetune.heads.estimate import Estimate
from finetune.models.attention_sites import AttentionSite
from finetune.runs.head_results import ChangeAgreement, HeadChanges, HeadTest, TauValue

RESAMPLES = 2000


def paired_tests(
    whole: np.ndarray, without: np.ndarray, sites: Sequence[AttentionSite], *, seed: int = 0
) -> list[HeadTest]:
    """Return, for each head, how many rows its removal turns wrong or right, with interval and test.

    The test is McNemar's, exact: of the rows that changed, is the share that turned wrong other than one half?
    All heads are tested at once, so the p values are corrected by Holm's method.

    Args:
        whole: whether each row is right with all heads, (N,).
        without: the same without each head, (N, L, H).
    """
    rng, rows, found = np.random.default_rng(seed), len(whole), []
    for site in sites:
        for head in range(site.num_heads):
            now = without[:, site.layer, head].astype(bool)
            lost, gained = int((whole & ~now).sum()), int((~whole & now).sum())
            # The difference depends on three counts alone, so rows are resampled by drawing these. Half a row more
            # on either side keeps the interval from closing where no or all rows changed one way.
            shares = np.array([lost + 0.5, gained + 0.5, rows - lost - gained]) / (rows + 1)
            drawn = rng.multinomial(rows, shares, size=RESAMPLES)  # (samples, 3)
            low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / rows, [2.5, 97.5])
            p_value = float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
            change = (gained - lost) / rows
            found.append(HeadTest(site.layer, head, change, float(low), float(high), lost, gained, p_value, 1.0))
    return _corrected(found)


def paired_error_tests(
    whole: np.ndarray, without: np.ndarray, sites: Sequence[AttentionSite], *, seed: int = 0
) -> list[HeadTest]:
    """Return the same for regression: by how much removal raises each row's squared error.

    The interval is that of the mean over resampled rows; the test is Wilcoxon's signed-rank test.

    Args:
        whole: squared errors with all heads, (N,).
        without: squared errors without each head, (N, L, H).
    """
    heads = [(site.layer, head) for site in sites for head in range(site.num_heads)]
    rises = np.stack([without[:, layer, head] - whole for layer, head in heads], axis=1)  # (N, heads)
    bounds = np.percentile(_resampled_means(rises, seed), [2.5, 97.5], axis=0)  # (2, heads)
    found = []
    for (layer, head), rise, low, high in zip(heads, rises.T, *bounds, strict=True):
        p_value = float(stats.wilcoxon(rise).pvalue) if np.any(rise != 0) else 1.0
        lost, gained, change = int((rise > 0).sum()), int((rise < 0).sum()), float(rise.mean())
        found.append(HeadTest(layer, head, change, float(low), float(high), lost, gained, p_value, 1.0))
    return _corrected(found)


def _resampled_means(values: np.ndarray, seed: int, block: int = 50) -> np.ndarray:
    """Return the means of values (N, ...) over resampled rows, (samples, ...), in blocks that fit in memory."""
    rng, rows = np.random.default_rng(seed), len(values)
    even = np.full(rows, 1 / rows)
    parts = [rng.multinomial(rows, even, size=block) @ values / rows for _ in range(RESAMPLES // block)]
    return np.concatenate(parts)


def _corrected(tests: list[HeadTest]) -> list[HeadTest]:
    corrected = holm([test.p_value for test in tests])
    return [replace(test, p_holm=p_value) for test, p_value in zip(tests, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for all being tested at once (Holm 1979): none below its own, none above 1."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    raised = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    corrected = np.empty(len(p_values))
    corrected[order] = raised
    return corrected.tolist()


def helped_by_removal(tests: Sequence[HeadTest], measure: str) -> str:
    """Return a warning if a head's removal alone makes the classifier better, or ""."""
    better = [test for test in tests if (test.high < 0 if measure == "mean squared error" else test.low > 0)]
    if not better:
        return ""
    sure = [test for test in better if test.p_holm < 0.05]
    best = max(better, key=lambda test: abs(test.change))
    named = f"{best.layer}.{best.head} ({best.change:+.4f} [{best.low:+.4f}, {best.high:+.4f}])"
    verdict = (
        f"{len(sure)} of them also after Holm's correction"
        if sure
        else f"none after Holm's correction for {len(tests)} tests, so chance alone can do this"
    )
    each = f"each of {len(better)} heads" if len(better) > 1 else "one head"
    return f"Removal of {each} alone helps {measure}, most of all {named}; {verdict}."


Table = Sequence[Sequence[float | None]]


_NORMAL_95 = 1.959964  # the normal distribution's 97.5 % point


def kendall_tau(first: Table, second: Table) -> TauValue:
    """Return Kendall's tau-b of two (L, H) tables, and a 95 % interval; cells that either lacks are left out.

    The interval is tau -+ 1.96 standard errors by the jackknife over heads (Efron and Stein 1981), cut to [-1, 1]: it
    says how much tau hangs on single heads, with the tables as they are, and draws nothing at random. Rows that are
    drawn again (a percentile bootstrap of the tables) would not do: each draw adds noise to both tables, noise pulls
    tau towards 0, and the interval lies too low (by 0.08 in a simulation of 72 heads and 128 rows).

    All is None where a table has one value only, so that there is no order; bounds also below 3 heads.

    Raises:
        ValueError: the tables differ in shape.
    """
    shapes = [[len(row) for row in table] for table in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the tables have rows of {shapes[0]} and {shapes[1]} cells; they must be of the same heads")
    cells = [
        (a, b)
        for left, right in zip(first, second, strict=True)
        for a, b in zip(left, right, strict=True)
        if a is not None and b is not None
    ]
    pairs = np.array(cells, dtype=np.float64).reshape(-1, 2)  # (n, 2)
    value = _tau(pairs)
    if value is None or len(pairs) < 3:
        return TauValue(value)
    without = [_tau(np.delete(pairs, index, axis=0)) for index in range(len(pairs))]
    known = np.array([tau for tau in without if tau is not None])
    if len(known) < len(pairs):
        return TauValue(value)
    half = _NORMAL_95 * np.sqrt((len(pairs) - 1) * known.var())
    return TauValue(value, max(-1.0, float(value - half)), min(1.0, float(value + half)))


def against_importance(changes: HeadChanges, importance: Table, name: str) -> ChangeAgreement:
    """Return whether training changed the heads that matter, as Kendall's tau with importance and in a sentence.

    Args:
        importance: (L, H), from the measure `name`.
    """
    output_value, query_key, effect = (
        kendall_tau(importance, table) for table in (changes.output_value, changes.query_key, changes.effect)
    )
    taus = {"output-value product": output_value, "query-key product": query_key}
    if any(cell is not None for row in changes.effect for cell in row):  # measured
        taus["effect"] = effect
    return ChangeAgreement(name, output_value, query_key, effect, _answer(taus))


def _answer(taus: dict[str, TauValue]) -> str:
    more = [name for name, tau in taus.items() if tau.low is not None and tau.low > 0]
    less = [name for name, tau in taus.items() if tau.high is not None and tau.high < 0]
    if all(tau.value is None for tau in taus.values()):
        return "There is no order to compare: all heads changed alike (or not at all), or matter alike."
    if len(more) == len(taus):
        said = "Yes, adaptation goes to the heads that matter"
    elif more and not less:
        others = " and ".join(name for name in taus if name not in more)
        said = f"In part: heads that matter more changed more by {' and '.join(more)}, not by {others}"
    elif less and not more:
        said = f"No, rather the reverse: heads that matter more changed less by {' and '.join(less)}"
    elif more and less:
        said = f"There is no one answer: more by {' and '.join(more)}, less by {' and '.join(less)}"
    else:
        said = "No such tie is seen between how much a head matters and how much it changed"
    listed = ", ".join(f"{name} {tau.text()}" for name, tau in taus.items())
    return f"{said} (Kendall's tau with importance, 95 % interval over heads: {listed})."


def _tau(pairs: np.ndarray) -> float | None:
    if any(len(np.unique(column)) < 2 for column in pairs.T):
        return None
    return float(kendalltau(pairs[:, 0], pairs[:, 1]).statistic)


HALVINGS = 100


def split_half_stability(
    contributions: np.ndarray, *, finish: Callable[[Estimate], Estimate] = lambda estimate: estimate, seed: int = 0
) -> TauValue | None:
    """Return Kendall's tau between the rankings of two random halves of the rows, over many halvings.

    The mean and the central 95 % of the halvings. Each half has half of the rows, so the ranking of all of them is
    steadier than this says. Resampling rows with repeats instead would count rows twice and say too much.

    Args:
        contributions: (N, L, H); NaN where a layer lacks the head.
        finish: what is done to a mean over rows before heads are ranked by it, such as a norm a layer.

    Returns:
        None for less than four rows or two heads, or where a half tells no head from another.
    """
    there = ~np.isnan(contributions).any(0)  # (L, H)
    if len(contributions) < 4 or there.sum() < 2:
        return None

    def ranked(rows: np.ndarray) -> np.ndarray:
        values: np.ndarray = finish(Estimate(contributions[rows].mean(0))).values[there]
        return values

    rng, half, found = np.random.default_rng(seed), len(contributions) // 2, []
    for _ in range(HALVINGS):
        shuffled = rng.permutation(len(contributions))
        found.append(stats.kendalltau(ranked(shuffled[:half]), ranked(shuffled[half:])).statistic)
    if np.isnan(found).any():
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return TauValue(float(np.mean(found)), float(low), float(high))


def fold_stability(folds: np.ndarray) -> TauValue | None:
    """Return Kendall's tau between the values of each two folds (F, L, H): the mean, the lowest and the highest.

    Each fold has a part of the rows only, so the mean of all folds is steadier than this says.

    Returns:
        None for less than two folds or two heads, or where a fold tells no head from another.
    """
    there = ~np.isnan(folds).any(0)
    if len(folds) < 2 or there.sum() < 2:
        return None
    found = [stats.kendalltau(first[there], second[there]).statistic for first, second in combinations(folds, 2)]
    return None if np.isnan(found).any() else TauValue(float(np.mean(found)), float(min(found)), float(max(found)))
