"""The names that tests give to attention heads, as stored in `heads.json`.

L layers, H heads
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

ESSENTIAL, REDUNDANT, HARMFUL, UNUSED = "essential", "redundant", "harmful", "unused"
NAMES = (ESSENTIAL, REDUNDANT, HARMFUL, UNUSED)


@dataclass(frozen=True)
class NamedHead:
    """A head with a name.

    Attributes:
        q_value: lowest false-discovery rate at which the head has this name.
        effect: mean score with all heads minus mean score without this head.
        partner: the head that replaces a redundant head.
        joint_effect: mean score with all heads minus mean score without the head and its partner.
    """

    layer: int
    head: int
    name: str
    q_value: float
    effect: float
    partner: tuple[int, int] | None = None
    joint_effect: float | None = None

    def text(self) -> str:
        """Return "redundant with layer 1, head 3", or the name alone."""
        partner = "" if self.partner is None else f" with layer {self.partner[0]}, head {self.partner[1]}"
        return self.name + partner


@dataclass(frozen=True)
class JointRemoval:
    """What happens when several heads are removed together.

    Attributes:
        heads: number of heads.
        effect: mean score with all heads minus mean score without them.
        change: mean change of the output.
    """

    heads: int
    effect: float
    change: float


@dataclass(frozen=True)
class HeadNames:
    """Names of heads, each from a test, and what was measured for the tests.

    Attributes:
        split, rows: the split and number of rows of the tests.
        screening_split, screening_rows: the split and number of other rows that chose the tested pairs of heads.
        level: false-discovery rate: the expected share of false names among the names is at most this.
        effect_margin, change_margin: effects and changes that are too small to matter.
        tests: number of tests, over all heads and names.
        score: what the score of a row is.
        mean_score: mean score with all heads.
        named: the heads that have a name; a head can be essential and redundant.
        effects, effect_errors: mean score with all heads minus without the head, and its standard error, (L, H).
        changes: mean change of the output without the head, (L, H).
        context_changes: the same while random sets of other heads are removed, (L, H).
        unused_together: the removal of all unused heads together; None if there are fewer than two.
        seconds: duration of the measurement.
    """

    split: str
    rows: int
    screening_split: str
    screening_rows: int
    level: float
    effect_margin: float
    change_margin: float
    tests: int
    score: str
    mean_score: float
    named: list[NamedHead]
    effects: list[list[float | None]]
    effect_errors: list[list[float | None]]
    changes: list[list[float | None]]
    context_changes: list[list[float | None]]
    unused_together: JointRemoval | None = None
    seconds: float = 0.0

    def by_head(self) -> dict[tuple[int, int], list[NamedHead]]:
        """Return the names of each head that has one."""
        result: dict[tuple[int, int], list[NamedHead]] = {}
        for named in self.named:
            result.setdefault((named.layer, named.head), []).append(named)
        return result

    def counts(self) -> dict[str, int]:
        """Return the number of heads with each name, and the number of undecided heads."""
        counts = Counter(named.name for named in self.named)
        heads = sum(value is not None for row in self.effects for value in row)
        return {name: counts[name] for name in NAMES} | {"undecided": heads - len(self.by_head())}

    def summary(self) -> str:
        """Return counts such as "2 essential, 4 redundant, none harmful, 3 unused, 63 undecided"."""
        parts = [f"{count or 'none'} {name}" for name, count in self.counts().items()]
        return ", ".join(parts)
