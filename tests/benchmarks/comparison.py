"""Paired comparison of variants over data sets, sizes and seeds, and its tables.

A group is a data set and a number of training rows. Differences are taken within a group and seed, so both sides have
the same training rows and the same scored rows. All differences are in percentage points of the metric.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from tests.benchmarks.cells import Line

Group = tuple[str, str]  # data set, rows
SIGNIFICANT = 0.01
SIGN_FLIPS = 9999


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % t interval and the p value of a t test against 0; None with fewer than two values."""

    mean: float
    half_width: float | None
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values, its interval and its p value."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, None, None)
    error = statistics.stdev(values) / count**0.5
    if error == 0:
        return Estimate(mean, 0.0, float(mean == 0))
    return Estimate(
        mean,
        float(stats.t.ppf(0.975, count - 1) * error),
        float(2 * stats.t.sf(abs(mean) / error, count - 1)),
    )


def sign_flip_p(differences: Mapping[Group, Sequence[float]]) -> float:
    """Return the p value of a sign-flip test over all pairs, with the mean of the group means as the statistic.

    If a variant made no difference in any group, each difference would be as likely with the opposite sign.
    """
    weighted = np.array([value / len(values) for values in differences.values() for value in values])
    # RandomState gives the same numbers in every version of numpy.
    signs = 2 * np.random.RandomState(0).randint(0, 2, (SIGN_FLIPS, len(weighted))) - 1
    as_large = np.abs(signs @ weighted) >= abs(weighted.sum()) * (1 - 1e-9)
    return float((1 + as_large.sum()) / (1 + SIGN_FLIPS))


def scores_by_group(cells: Sequence[Line], variant: str) -> dict[Group, dict[int, Line]]:
    """Return the cells of a variant by group, then seed."""
    groups: dict[Group, dict[int, Line]] = {}
    for cell in cells:
        if cell["variant"] == variant:
            groups.setdefault((cell["data"], cell["rows"]), {})[cell["seed"]] = cell
    return groups


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline.

    Attributes:
        differences: percentage points per seed, by group.
        time_ratio: median of the time over that of the baseline, scoring included.
    """

    variant: str
    differences: dict[Group, list[float]]
    time_ratio: float

    def groups(self) -> dict[Group, Estimate]:
        """Return the mean difference of each group over its seeds."""
        return {group: estimate(values) for group, values in self.differences.items()}

    def overall(self) -> Estimate:
        """Return the mean over the groups; interval and p value are those of the group means."""
        return estimate([statistics.fmean(values) for values in self.differences.values()])


def compare(cells: Sequence[Line], variant: str, baseline: str) -> Comparison | None:
    """Return the comparison over all groups and seeds that both have, None if there are none."""
    ours, theirs = scores_by_group(cells, variant), scores_by_group(cells, baseline)
    pairs = {
        group: [(ours[group][seed], theirs[group][seed]) for seed in sorted(ours[group].keys() & theirs[group].keys())]
        for group in ours
        if group in theirs
    }
    differences = {
        group: [100 * (one["score"] - other["score"]) for one, other in both] for group, both in pairs.items() if both
    }
    if not differences:
        return None
    ratios = [one["cpu_seconds"] / max(other["cpu_seconds"], 0.01) for both in pairs.values() for one, other in both]
    return Comparison(variant, differences, statistics.median(ratios))


def groups_in_order(cells: Sequence[Line]) -> list[Group]:
    """Return the groups, small numbers of rows first."""
    groups = {(cell["data"], cell["rows"]) for cell in cells}
    return sorted(groups, key=lambda group: (group[1] == "1000", group))


def title(group: Group) -> str:
    """Return a group's name in a table, such as "trec, 200"."""
    return f"{group[0]}, {group[1].replace('/', ' per ')}"


def points(value: Estimate) -> str:
    """Return a difference with its interval; bold where p is below SIGNIFICANT."""
    text = f"{value.mean:+.1f}" + ("" if value.half_width is None else f" ± {value.half_width:.1f}")
    return f"**{text}**" if value.p is not None and value.p < SIGNIFICANT else text


def p_text(p: float | None) -> str:
    """Return a p value in a table."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_table(cells: Sequence[Line], baseline: str = "plain") -> list[list[str]]:
    """Return the table of all variants against a baseline, with its header: the largest gain first."""
    groups = groups_in_order(cells)
    names = dict.fromkeys(cell["variant"] for cell in cells)
    found = [compare(cells, name, baseline) for name in names if name != baseline]
    comparisons = sorted((item for item in found if item), key=lambda item: -item.overall().mean)
    header = ["", "mean", "p, data sets", "p, all pairs", *(title(group) for group in groups), "pairs", "time"]
    plain = scores_by_group(cells, baseline)
    means = {
        group: 100 * statistics.fmean(cell["score"] for cell in plain[group].values())
        for group in groups
        if group in plain
    }
    rows = [[baseline, f"{statistics.fmean(means.values()):.1f}", "", ""]] if means else []
    for row in rows:
        row += [f"{means[group]:.1f}" if group in means else "" for group in groups] + ["", ""]
    for item in comparisons:
        each, overall = item.groups(), item.overall()
        cell_texts = [points(each[group]) if group in each else "" for group in groups]
        p_values = [p_text(overall.p), p_text(sign_flip_p(item.differences))]
        count = sum(len(values) for values in item.differences.values())
        rows.append([item.variant, points(overall), *p_values, *cell_texts, str(count), f"{item.time_ratio:.2f}"])
    return [header, *rows]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table with its header as markdown."""
    header, *rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_table(table: Sequence[Sequence[str]], width: int | None = None) -> None:
    """Print a table with its header."""
    header, *rows = table
    shown = Table(*header)
    for row in rows:
        shown.add_row(*(cell.replace("**", "") for cell in row))
    Console(highlight=False, width=width).print(shown)
