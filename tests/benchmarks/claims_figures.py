"""The figures of the statements, computed from the kept measurements: a value per data set and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from tests.benchmarks.cells import Line
from tests.benchmarks.claims_interval import Interval, nested_interval
from tests.benchmarks.claims_measure import ITERATIVE

Values = dict[str, dict[int, float]]  # data set -> seed -> value
Figure = Callable[["Measurements"], Values]
FORTY, SIXTY = 4, 6  # tenths of the heads


@dataclass(frozen=True)
class Measurements:
    """The finished measurements."""

    lines: Sequence[Line]

    def of(self, part: str) -> dict[tuple[str, int], Line]:
        """Return the lines of one part by data set and seed."""
        return {(line["data"], line["seed"]): line for line in self.lines if line["variant"] == part}

    def each(self, value: Callable[..., float], *parts: str) -> Values:
        """Return `value`, from the lines of these parts, where a data set and seed has all of them."""
        found, values = [self.of(part) for part in parts], Values()
        for data, seed in sorted(set(found[0]).intersection(*found[1:])):
            values.setdefault(data, {})[seed] = value(*(lines[data, seed] for lines in found))
        return values

    def orders(self) -> dict[tuple[str, int], dict[str, list[int]]]:
        """Return the orders of the heads by data set and seed, then by name."""
        orders: dict[tuple[str, int], dict[str, list[int]]] = {}
        for line in self.lines:
            orders.setdefault((line["data"], line["seed"]), {}).update(line.get("orders", {}))
        return {key: value for key, value in orders.items() if value}


def with_common_seeds(values: Values) -> Values:
    """Return the values of the seeds that all data sets have."""
    seeds = set.intersection(*(set(of_set) for of_set in values.values())) if values else set()
    return {data: {seed: of_set[seed] for seed in sorted(seeds)} for data, of_set in values.items() if seeds}


def summarized(values: Values) -> Interval | None:
    """Return the mean and its intervals over the seeds that all data sets have; None without any."""
    common = with_common_seeds(values)
    return nested_interval({data: list(of_set.values()) for data, of_set in common.items()}) if common else None


def forty_percent(measured: Measurements) -> Values:
    """Return the points of accuracy lost without 40 % of the heads."""
    return measured.each(lambda line: 100 * (line["whole"] - line["score"]), "forty_percent")


def sharper(measured: Measurements) -> Values:
    """Return the points lost per tenth of the heads from 60 to 90 %, minus twice those up to 60 %."""

    def difference(line: Line) -> float:
        whole, sixty, ninety = line["whole"], line["scores"][SIXTY - 1], line["scores"][-1]
        tenths = len(line["scores"]) - SIXTY
        return 100 * ((sixty - ninety) / tenths - 2 * (whole - sixty) / SIXTY)

    return measured.each(difference, f"curve {ITERATIVE}")


def single_heads(measured: Measurements) -> Values:
    """Return the percentage of heads whose removal alone has a significant effect."""
    return measured.each(lambda line: 100 * line["score"], "single_heads")


def curve_difference(first: str, second: str) -> Figure:
    """Return the figure of the mean of one pruning curve minus that of another, in points."""
    return lambda measured: measured.each(
        lambda one, other: 100 * (one["score"] - other["score"]), f"curve {first}", f"curve {second}"
    )


def retrained_difference(first: str, second: str, key: str = "score") -> Figure:
    """Return the figure of one sub-network's accuracy minus another's, in points.

    Args:
        key: "score" after training, "masked" before it.
    """
    return lambda measured: measured.each(
        lambda one, other: 100 * (one[key] - other[key]), f"retrain {first}", f"retrain {second}"
    )


def share_of_full(measured: Measurements) -> Values:
    """Return the accuracy of the trained "bad" sub-network in % of that of the full model."""
    return measured.each(lambda bad, full: 100 * bad["score"] / full["score"], "retrain bad", "retrain full")


def tau(first: Sequence[int], second: Sequence[int]) -> float:
    """Return Kendall's tau between two orders of the same heads."""
    return float(stats.kendalltau(np.argsort(first), np.argsort(second)).statistic)


def between_seeds(name: str) -> Figure:
    """Return the figure of Kendall's tau between the orders of two seeds: the mean over pairs, one per data set."""

    def values(measured: Measurements) -> Values:
        by_set: dict[str, list[list[int]]] = {}
        for (data, _), orders in sorted(measured.orders().items()):
            if name in orders:
                by_set.setdefault(data, []).append(orders[name])
        pairs = {data: [tau(*pair) for pair in combinations(orders, 2)] for data, orders in by_set.items()}
        return {data: {0: float(np.mean(taus))} for data, taus in pairs.items() if taus}

    return values


def batch_against_rows(size: int) -> Figure:
    """Return the figure of tau between two halves of the rows, minus tau between per row and per batch of `size`."""

    def values(measured: Measurements) -> Values:
        found = Values()
        for (data, seed), orders in sorted(measured.orders().items()):
            if "gradient" in orders:
                halves = tau(orders["gradient_half_1"], orders["gradient_half_2"])
                found.setdefault(data, {})[seed] = halves - tau(orders["gradient"], orders[f"gradient_batch_{size}"])
        return found

    return values


def small_difference(many: int, few: int) -> Figure:
    """Return the figure of the small classifier's accuracy with many heads minus that with few, in points."""
    return lambda measured: measured.each(
        lambda one, other: 100 * (one["score"] - other["score"]), f"small {many}", f"small {few}"
    )
