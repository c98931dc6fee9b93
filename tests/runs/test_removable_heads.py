from __future__ import annotations

from finetune.runs.head_results import HeadAnalysis, HeadScores, PruningCurve, PruningCurves
from finetune.runs.removable_heads import RemovableHeads, removable_heads

TENTHS = [tenth / 10 for tenth in range(1, 10)]


def analysis(heads: int, scores: list[float], by_count: list[float]) -> HeadAnalysis:
    """Return an analysis of one layer; the score with all heads is 0.8."""
    order = [(0, head) for head in range(heads)]
    method = HeadScores("gradient", "", "train", 9, [[1.0] * heads], [[None] * heads], order)
    curve = PruningCurve("gradient", scores, 0.0, None, by_count)
    return HeadAnalysis([method], PruningCurves("accuracy", "validation", 9, 0.8, TENTHS, [curve], None))


def test_a_curve_with_one_point_per_head_gives_the_exact_number() -> None:
    scores = [0.8, 0.79, 0.7, 0.79, 0.5]  # falls and rises again
    small = analysis(6, [0.0] * 9, scores)
    assert removable_heads(small, 0.01) == RemovableHeads(4, 6, 5)
    assert removable_heads(small, 0.009) == RemovableHeads(1, 6, 2)
    assert removable_heads(small, 0.5) == RemovableHeads(5, 6, None)
    found = removable_heads(small, 0.01)
    assert found is not None
    assert found.text() == "4 of 6"


def test_a_coarse_curve_says_which_number_was_tried_next() -> None:
    found = removable_heads(analysis(72, [0.81, 0.8, 0.79, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], []), 0.01)
    assert found == RemovableHeads(22, 72, 29)
    assert found.text() == "22 of 72 (at 29 the score is lower)"


def test_runs_of_earlier_versions_have_only_shares() -> None:
    # Of two heads, the tenths up to 0.2 remove none, and the others one.
    old = analysis(2, [0.8, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], [])
    assert removable_heads(old, 0.01) == RemovableHeads(0, 2, 1)
    assert removable_heads(old, 0.1) == RemovableHeads(1, 2, None)


def test_the_only_head_cannot_be_removed() -> None:
    assert removable_heads(analysis(1, [0.8] * 9, []), 0.01) == RemovableHeads(0, 1, None)
    assert removable_heads(HeadAnalysis(analysis(1, [0.8] * 9, []).methods), 0.01) is None
