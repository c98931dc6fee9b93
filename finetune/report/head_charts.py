"""Charts of the head analysis: pruning curves, and the agreement of rankings. Each function returns a chart option."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from finetune.report.charts import COLORS, ChartOption
from finetune.runs.head_results import HeadAnalysis, PruningCurves, TauValue

_MAX_PAIRS = 15  # of methods in the chart of agreement; beyond, only the pairs with the leading method

_BAND_EDGE = "lower edge"  # a helper line without an entry in the legend

Point = list[float | str]


def pruning_chart(result: PruningCurves) -> ChartOption:
    """Return the score by share of heads removed: a line per method and for its reverse, and bands.

    The bands: from minimum to maximum of the random orders; and for the leading method and its reverse the 95 %
    interval of each score, if it is an accuracy.
    """
    metric, leading = result.metric.replace("_", " "), result.curves[0]
    percent = [0.0, *(round(100 * share, 6) for share in result.shares)]
    series: list[dict[str, Any]] = []
    hidden: dict[str, bool] = {}

    def add_line(name: str, scores: Sequence[float], color: str, size: int = 6, **style: Any) -> None:
        points = [[x, round(y, 6)] for x, y in zip(percent, [result.whole, *scores], strict=True)]
        style, item = {"color": f"var(--{color})", **style}, {"color": f"var(--{color})"}
        dimensions = {"dimensions": ["heads removed, %", metric], "encode": {"x": 0, "y": 1, "tooltip": [0, 1]}}
        line = {"type": "line", "name": name, "data": points, "lineStyle": style, "itemStyle": item, "symbolSize": size}
        series.append(line | dimensions)

    def add_interval(name: str, scores: Sequence[float], color: str) -> None:
        bounds = [wilson_interval(score, result.rows) for score in (result.whole, *scores)]
        low, high = zip(*bounds, strict=True)
        series.extend(_band(name, percent, low, high, color))

    if band := result.random:
        name, whole = f"{band.orders} random orders, minimum to maximum", result.whole
        series += _band(name, percent, [whole, *band.low], [whole, *band.high], "gray")
        add_line("random orders, mean", band.mean_scores, "gray", type="dotted", width=1.5)
    for number, curve in enumerate(result.curves):
        name, color = curve.method.replace("_", " "), COLORS[number % len(COLORS)]
        reverse_name = f"{name}, most important first"
        add_line(name, curve.scores, color, width=2.5 if curve is leading else 1.5)
        if curve is leading and has_intervals(result):
            add_interval(name, curve.scores, color)
        if curve.reverse_scores:
            add_line(reverse_name, curve.reverse_scores, color, 4, width=1.5, type="dashed")
            if curve is leading and has_intervals(result):
                add_interval(reverse_name, curve.reverse_scores, color)
            hidden |= {} if curve is leading else {reverse_name: False}
    return _pruning_option(metric, series, hidden)


def _pruning_option(metric: str, series: list[dict[str, Any]], hidden: dict[str, bool]) -> ChartOption:
    names = dict.fromkeys(each["name"] for each in series if each["name"] != _BAND_EDGE)
    return {
        "legend": {"type": "scroll", "top": 0, "left": 0, "selected": hidden, "data": list(names)},
        "tooltip": {"trigger": "item"},
        "grid": {"top": 64, "left": 54, "right": 16, "bottom": 46},
        "xAxis": {
            "type": "value", "name": "% of heads removed", "nameLocation": "middle", "nameGap": 28,
            "min": 0, "max": 100,
        },
        "yAxis": {"type": "value", "name": metric, "nameTextStyle": {"align": "left"}, "scale": True},
        "series": series,
    }  # fmt: skip


def has_intervals(result: PruningCurves) -> bool:
    """Return whether the scores have intervals: each is a share of the rows."""
    return result.metric in ("accuracy", "subset_accuracy")


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent rows (Wilson 1927)."""
    z = 1.959964
    center, spread = share + z**2 / (2 * rows), z * sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    scale = 1 + z**2 / rows
    return (center - spread) / scale, (center + spread) / scale


def _band(
    name: str, percent: Sequence[float], low: Sequence[float], high: Sequence[float], color: str
) -> list[dict[str, Any]]:
    """Return an area from `low` to `high`: two stacked lines that cannot be seen, with the height of the area."""
    edge = {
        "type": "line", "stack": name, "stackStrategy": "all", "symbol": "none", "silent": True, "z": 1,
        "lineStyle": {"opacity": 0}, "itemStyle": {"color": f"var(--{color})"},
    }  # fmt: skip
    starts = [[x, round(bottom, 6)] for x, bottom in zip(percent, low, strict=True)]
    heights = [[x, round(top - bottom, 6)] for x, bottom, top in zip(percent, low, high, strict=True)]
    area = {"color": f"var(--{color})", "opacity": 0.22 if color == "gray" else 0.14}
    return [edge | {"name": _BAND_EDGE, "data": starts}, edge | {"name": name, "data": heights, "areaStyle": area}]


def agreement_rows(analysis: HeadAnalysis) -> dict[str, list[tuple[str, TauValue]]]:
    """Return Kendall's tau of pairs of methods, and of each method with itself on other rows, by kind."""
    leading = analysis.methods[0].method
    pairs = [pair for pair in analysis.agreement if pair.tau.value is not None]
    if len(pairs) > _MAX_PAIRS:
        pairs = [pair for pair in pairs if leading in (pair.first, pair.second)]
    stable = [
        (scores.method.replace("_", " "), scores.stability)
        for scores in analysis.methods
        if scores.stability is not None and scores.stability.value is not None
    ]
    between = [
        (f"{pair.first} and {pair.second}".replace("_", " "), pair.tau)
        for pair in sorted(pairs, key=lambda pair: -(pair.tau.value or 0.0))
    ]
    kinds = {"one method, two halves of the rows": stable, "two methods, the same rows": between}
    return {kind: rows for kind, rows in kinds.items() if rows}


def agreement_chart(rows: dict[str, list[tuple[str, TauValue]]]) -> ChartOption:
    """Return a dot plot of Kendall's tau with its intervals, a color per kind of comparison."""
    names: list[str] = []
    series: list[dict[str, Any]] = []
    for number, (kind, values) in enumerate(rows.items()):
        points: list[Point] = []
        intervals: list[Point] = []
        for name, tau in values:
            points.append([round(tau.value or 0.0, 4), len(names)])
            if tau.low is not None and tau.high is not None:
                intervals += [[round(tau.low, 4), len(names)], [round(tau.high, 4), len(names)], ["-", "-"]]
            names.append(name)
        color = {"color": f"var(--{('green', 'blue')[number % 2]})"}
        series += [
            {
                "type": "line", "name": kind, "data": intervals, "symbol": "none", "silent": True,
                "lineStyle": {**color, "width": 2, "opacity": 0.6}, "itemStyle": color,
            },
            {
                "type": "scatter", "name": kind, "data": points, "symbolSize": 9, "itemStyle": color,
                "dimensions": ["Kendall's tau", "rankings"], "encode": {"x": 0, "y": 1, "tooltip": [0, 1]},
            },
        ]  # fmt: skip
    return {
        "legend": {"top": 0, "left": 0},
        "tooltip": {"trigger": "item"},
        "grid": {"top": 40, "left": 10, "right": 20, "bottom": 44, "containLabel": True},
        "xAxis": {"type": "value", "name": "Kendall's tau", "nameLocation": "middle", "nameGap": 26, "max": 1},
        "yAxis": {
            "type": "category", "data": names, "inverse": True,
            "axisLabel": {"width": 150, "overflow": "break", "lineHeight": 13},
        },
        "series": series,
    }  # fmt: skip
