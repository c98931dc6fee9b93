"""Charts of the head analysis: pruning curves, and the agreement of rankings. Each function returns a chart option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.report.charts import ChartOption
from finetune.runs.head_results import HeadAnalysis, PruningCurves, RandomBand, TauValue

_COLORS = ("blue", "orange", "green", "purple", "red", "cyan", "gold", "olive", "pink", "gray")
_MAX_PAIRS = 15  # of methods in the chart of agreement; beyond, only the pairs with the leading method

_BAND_EDGE = "lower edge"  # a helper line without an entry in the legend

Point = list[float | str]


def pruning_chart(result: PruningCurves) -> ChartOption:
    """Return the score by share of heads removed: a line per method, its reverse, and the band of random orders."""
    metric = result.metric.replace("_", " ")
    percent = [0.0, *(round(100 * share, 6) for share in result.shares)]
    dimensions = ["heads removed, %", metric]

    def line(name: str, scores: Sequence[float], color: str, **style: Any) -> dict[str, Any]:
        points = [[x, round(y, 6)] for x, y in zip(percent, [result.whole, *scores], strict=True)]
        return {
            "type": "line", "name": name, "data": points, "dimensions": dimensions,
            "encode": {"x": 0, "y": 1, "tooltip": [0, 1]}, "itemStyle": {"color": f"var(--{color})"},
            "lineStyle": {"color": f"var(--{color})", **style}, "symbolSize": 6,
        }  # fmt: skip

    series = [] if result.random is None else _random_series(result.random, result.whole, percent, line)
    for number, curve in enumerate(result.curves):
        name, color = curve.method.replace("_", " "), _COLORS[number % len(_COLORS)]
        series.append(line(name, curve.scores, color, width=2.5 if number == 0 else 1.5))
        if curve.reverse_scores:
            reverse = line(f"{name}, most important first", curve.reverse_scores, color, width=1.5, type="dashed")
            series.append({**reverse, "symbolSize": 4})
    hidden = {
        f"{curve.method.replace('_', ' ')}, most important first": False
        for curve in result.curves[1:]
        if curve.reverse_scores
    }
    return {
        "legend": {
            "type": "scroll", "top": 0, "left": 0, "selected": hidden,
            "data": [each["name"] for each in series if each["name"] != _BAND_EDGE],
        },
        "tooltip": {"trigger": "item"},
        "grid": {"top": 64, "left": 54, "right": 16, "bottom": 46},
        "xAxis": {
            "type": "value", "name": "% of heads removed", "nameLocation": "middle", "nameGap": 28,
            "min": 0, "max": 100,
        },
        "yAxis": {"type": "value", "name": metric, "nameTextStyle": {"align": "left"}, "scale": True},
        "series": series,
    }  # fmt: skip


def _random_series(band: RandomBand, whole: float, percent: Sequence[float], line: Any) -> list[dict[str, Any]]:
    """Return the mean of the random orders, and an area between their minimum and maximum (two stacked lines)."""
    low, high = [whole, *band.low], [whole, *band.high]
    edge = {"type": "line", "stack": "random", "stackStrategy": "all", "symbol": "none", "silent": True}
    invisible = {"lineStyle": {"opacity": 0}, "itemStyle": {"color": "var(--gray)"}}
    heights = [[x, round(top - bottom, 6)] for x, bottom, top in zip(percent, low, high, strict=True)]
    return [
        {**edge, **invisible, "name": _BAND_EDGE, "data": [[x, y] for x, y in zip(percent, low, strict=True)]},
        {
            **edge, **invisible, "name": f"{band.orders} random orders, minimum to maximum", "data": heights,
            "areaStyle": {"color": "var(--gray)", "opacity": 0.22},
        },
        line("random orders, mean", band.mean_scores, "gray", type="dotted", width=1.5),
    ]  # fmt: skip


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
