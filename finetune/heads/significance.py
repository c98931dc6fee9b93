"""Is the effect of one head's removal more than chance? Paired tests, row by row.

N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from finetune.families import AttentionSite
from finetune.head_results import HeadTest

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
