"""Statistics of head rankings: stability over rows, agreement with importance, and paired tests of single heads.

N rows, L layers, H heads, F folds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy import stats

from finetune.evaluation.paired_tests import mcnemar_p_value, wilcoxon_p_value
from finetune.heads.importance_estimate import Estimate
from finetune.heads.rank_correlation import Table, kendall_tau
from finetune.models.attention_sites import AttentionSite, all_heads
from finetune.runs.head_results import ChangeAgreement, HeadChanges, HeadTest, TauValue
from finetune.runs.multiple_tests import holm

HALVINGS = 100  # random splits of the rows into halves
RESAMPLES = 2000  # bootstrap samples


def against_importance(changes: HeadChanges, importance: Table, name: str) -> ChangeAgreement:
    """Return Kendall's tau between importance and each measure of the change in training, and a sentence about it.

    Args:
        importance: (L, H), from the head method `name`.
    """
    output_value, query_key, effect = (
        kendall_tau(importance, table) for table in (changes.output_value, changes.query_key, changes.effect)
    )
    taus = {"output-value product": output_value, "query-key product": query_key}
    if any(cell is not None for row in changes.effect for cell in row):  # measured
        taus["effect"] = effect
    return ChangeAgreement(name, output_value, query_key, effect, _describe_agreement(taus))


def _describe_agreement(taus: dict[str, TauValue]) -> str:
    """Return a sentence on whether training changed the important heads more, from tau by measure of change."""
    more = [name for name, tau in taus.items() if tau.low is not None and tau.low > 0]
    less = [name for name, tau in taus.items() if tau.high is not None and tau.high < 0]
    if all(tau.value is None for tau in taus.values()):
        return "There is no order to compare: all heads changed equally (or not at all), or all are equally important."
    if len(more) == len(taus):
        answer = "Yes, training changed the important heads more"
    elif more and not less:
        others = " and ".join(name for name in taus if name not in more)
        answer = f"In part: important heads changed more by {' and '.join(more)}, but not by {others}"
    elif less and not more:
        answer = f"No, the reverse: important heads changed less by {' and '.join(less)}"
    elif more and less:
        answer = f"Mixed: important heads changed more by {' and '.join(more)}, less by {' and '.join(less)}"
    else:
        answer = "No relation was found between the importance of a head and its change"
    listed = ", ".join(f"{name} {tau.text()}" for name, tau in taus.items())
    return f"{answer} (Kendall's tau with importance, 95 % interval over heads: {listed})."


def split_half_stability(
    contributions: np.ndarray, *, finish: Callable[[Estimate], Estimate] = lambda estimate: estimate, seed: int = 0
) -> TauValue | None:
    """Return Kendall's tau between rankings from two random halves of the rows: mean and central 95 % of 100 splits.

    Each half has half of the rows, so the ranking from all rows is more stable than this value. Bootstrap samples would
    share rows and overstate the stability.

    Args:
        contributions: (N, L, H); NaN where a layer lacks the head.
        finish: applied to the mean over rows before ranking, such as a normalization per layer.

    Returns:
        None for fewer than four rows or two heads, or if the values of a half are all equal.
    """
    mask = ~np.isnan(contributions).any(0)  # (L, H)
    if len(contributions) < 4 or mask.sum() < 2:
        return None

    def values_from(rows: np.ndarray) -> np.ndarray:
        values: np.ndarray = finish(Estimate(contributions[rows].mean(0))).values[mask]
        return values

    rng, half, taus = np.random.default_rng(seed), len(contributions) // 2, []
    for _ in range(HALVINGS):
        shuffled = rng.permutation(len(contributions))
        taus.append(stats.kendalltau(values_from(shuffled[:half]), values_from(shuffled[half:])).statistic)
    if np.isnan(taus).any():
        return None
    low, high = np.percentile(taus, [2.5, 97.5])
    return TauValue(float(np.mean(taus)), float(low), float(high))


def fold_stability(folds: np.ndarray) -> TauValue | None:
    """Return Kendall's tau between the values of pairs of folds (F, L, H): mean, minimum and maximum over pairs.

    Each fold has only a part of the rows, so the mean over folds is more stable than this value.

    Returns:
        None for fewer than two folds or two heads, or if the values of a fold are all equal.
    """
    mask = ~np.isnan(folds).any(0)  # (L, H)
    if len(folds) < 2 or mask.sum() < 2:
        return None
    taus = [stats.kendalltau(first[mask], second[mask]).statistic for first, second in combinations(folds, 2)]
    return None if np.isnan(taus).any() else TauValue(float(np.mean(taus)), float(min(taus)), float(max(taus)))


def paired_tests(
    full: np.ndarray, without: np.ndarray, sites: Sequence[AttentionSite], *, seed: int = 0
) -> list[HeadTest]:
    """Return the change of accuracy without each head, with a 95 % bootstrap interval and McNemar's exact test (1947).

    The test asks whether, among the rows whose correctness changed, the fraction that became wrong differs from one
    half. All heads are tested, so the p-values are corrected by Holm's method.

    Args:
        full: whether each row is correct with all heads, (N,).
        without: the same without each head, (N, L, H).
    """
    rng, rows, tests = np.random.default_rng(seed), len(full), []
    for site in sites:
        for head in range(site.num_heads):
            now = without[:, site.layer, head].astype(bool)
            lost, gained = int((full & ~now).sum()), int((~full & now).sum())
            # The change depends only on three counts, so a bootstrap sample of rows is a draw of these counts. The
            # extra half row on either side keeps the interval open if no row or every row changed in one direction.
            shares = np.array([lost + 0.5, gained + 0.5, rows - lost - gained]) / (rows + 1)
            drawn = rng.multinomial(rows, shares, size=RESAMPLES)  # (samples, 3)
            low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / rows, [2.5, 97.5])
            p_value = mcnemar_p_value(lost, gained)
            change = (gained - lost) / rows
            tests.append(HeadTest(site.layer, head, change, float(low), float(high), lost, gained, p_value, 1.0))
    return _corrected(tests)


def paired_error_tests(
    full: np.ndarray, without: np.ndarray, sites: Sequence[AttentionSite], *, seed: int = 0
) -> list[HeadTest]:
    """Return the increase of the mean squared error without each head, for regression.

    Each test has the 95 % bootstrap interval of the mean increase and the p-value of Wilcoxon's signed-rank test
    (1945), corrected by Holm's method.

    Args:
        full: squared errors with all heads, (N,).
        without: squared errors without each head, (N, L, H).
    """
    heads = all_heads(sites)
    rises = np.stack([without[:, layer, head] - full for layer, head in heads], axis=1)  # (N, heads)
    bounds = np.percentile(_resampled_means(rises, seed), [2.5, 97.5], axis=0)  # (2, heads)
    tests = []
    for (layer, head), rise, low, high in zip(heads, rises.T, *bounds, strict=True):
        p_value = wilcoxon_p_value(rise)
        lost, gained, change = int((rise > 0).sum()), int((rise < 0).sum()), float(rise.mean())
        tests.append(HeadTest(layer, head, change, float(low), float(high), lost, gained, p_value, 1.0))
    return _corrected(tests)


def _resampled_means(values: np.ndarray, seed: int, block: int = 50) -> np.ndarray:
    """Return the means of values (N, ...) over bootstrap samples, (samples, ...), in blocks to limit memory."""
    rng, rows = np.random.default_rng(seed), len(values)
    uniform = np.full(rows, 1 / rows)
    parts = [rng.multinomial(rows, uniform, size=block) @ values / rows for _ in range(RESAMPLES // block)]
    return np.concatenate(parts)


def _corrected(tests: list[HeadTest]) -> list[HeadTest]:
    """Return the tests with their p-values corrected by Holm's method."""
    corrected = holm([test.p_value for test in tests])
    return [replace(test, p_holm=p_value) for test, p_value in zip(tests, corrected, strict=True)]


def helped_by_removal(tests: Sequence[HeadTest], measure: str) -> str:
    """Return a warning if removing a single head improves the classifier, or ""."""
    better = [test for test in tests if (test.high < 0 if measure == "mean squared error" else test.low > 0)]
    if not better:
        return ""
    significant = [test for test in better if test.p_holm < 0.05]
    best = max(better, key=lambda test: abs(test.change))
    named = f"{best.layer}.{best.head} ({best.change:+.4f} [{best.low:+.4f}, {best.high:+.4f}])"
    verdict = (
        f"{len(significant)} of them also after Holm's correction"
        if significant
        else f"none after Holm's correction for {len(tests)} tests, so this can be chance"
    )
    each = f"each of {len(better)} heads" if len(better) > 1 else "one head"
    return f"Removing {each} alone improves {measure}, most for {named}; {verdict}."
