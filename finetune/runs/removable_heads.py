"""How many heads of a trained model can be removed at a given loss of score, read from its pruning curve."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.runs.head_results import HeadAnalysis


@dataclass(frozen=True)
class RemovableHeads:
    """How many of a model's heads can be removed at a given loss of score.

    Attributes:
        count: the largest number of heads that the curve has a score for and whose removal costs no more.
        heads: number of all heads.
        next_count: the next higher number that the curve has a score for; None if `count` is the highest.
    """

    count: int
    heads: int
    next_count: int | None

    def text(self) -> str:
        """Return "5 of 16", or with a coarse curve "14 of 72 (at 22 the score is lower)"."""
        gap = "" if self.next_count in (None, self.count + 1) else f" (at {self.next_count} the score is lower)"
        return f"{self.count} of {self.heads}{gap}"


def removable_heads(analysis: HeadAnalysis, within: float) -> RemovableHeads | None:
    """Return how many heads can be removed with a score at most `within` below that of the full model.

    The heads are removed in the order of the leading method, and the scores are those of its pruning curve, on rows
    that were not used for the ranking. One head always remains. A curve has one point per head for models of at most 16
    heads, otherwise one for every tenth of the heads. A curve can fall and rise again: the highest number counts.

    Returns:
        None if there is no pruning curve.
    """
    curves = analysis.truth
    if curves is None:
        return None
    heads, curve = len(analysis.methods[0].order), curves.curves[0]
    shares = [min(round(share * heads), heads - 1) for share in curves.shares]
    counts = range(1, heads) if curve.by_count else shares
    scores = {0: curves.whole, **dict(zip(counts, curve.by_count or curve.scores, strict=True))}
    allowed = [count for count, score in scores.items() if score >= curves.whole - within - 1e-9]
    return RemovableHeads(max(allowed), heads, min((count for count in scores if count > max(allowed)), default=None))
