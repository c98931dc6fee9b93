"""Rules, fixed before measuring, that turn a 95 % interval into a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.claims_interval import Interval

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
POINT = 1.0  # percentage point: smaller advantages do not count


@dataclass(frozen=True)
class Rule:
    """When a statement holds and when it does not; otherwise it is not decided.

    Attributes:
        text: the rule in words.
        holds, fails: from the bounds of the 95 % interval.
    """

    text: str
    holds: Callable[[float, float], bool]
    fails: Callable[[float, float], bool]

    def verdict(self, interval: Interval) -> str:
        """Return HOLDS, FAILS or OPEN; OPEN without an interval."""
        if interval.low is None or interval.high is None:
            return OPEN
        if self.holds(interval.low, interval.high):
            return HOLDS
        return FAILS if self.fails(interval.low, interval.high) else OPEN


def at_most(limit: float, text: str) -> Rule:
    """Return the rule that a figure is not above a limit."""
    return Rule(
        f"holds if the whole interval is at or below {text}; does not hold if it is above",
        lambda low, high: high <= limit,
        lambda low, high: low > limit,
    )


def at_least(limit: float, text: str) -> Rule:
    """Return the rule that a figure is not below a limit."""
    return Rule(
        f"holds if the whole interval is at or above {text}; does not hold if it is below",
        lambda low, high: low >= limit,
        lambda low, high: high < limit,
    )


def positive(margin: float = POINT, text: str = "an advantage of one point is excluded") -> Rule:
    """Return the rule that a difference is above 0; it fails if a difference of `margin` is excluded."""
    return Rule(
        f"holds if the whole interval is above 0; otherwise does not hold if it is below {margin:g} ({text})",
        lambda low, high: low > 0,
        lambda low, high: high < margin,
    )


def between(lowest: float, highest: float, text: str) -> Rule:
    """Return the rule that a figure lies between two limits."""
    return Rule(
        f"holds if the whole interval is between {text}; does not hold if it is outside",
        lambda low, high: lowest < low and high < highest,
        lambda low, high: high <= lowest or low >= highest,
    )
