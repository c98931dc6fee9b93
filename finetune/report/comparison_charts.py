"""The chart of a comparison of runs: differences with their intervals."""

from __future__ import annotations

from typing import Any

from finetune.report.charts import COLORS, ChartOption
from finetune.report.comparison_text import difference_text
from finetune.runs.comparison import RunsComparison

_GAP: list[float | str] = ["-", "-"]  # ends a line, so that the next interval does not continue it


def difference_chart(comparison: RunsComparison, split: str) -> ChartOption:
    """Return the difference of every metric from the first run with its interval, a color per run."""
    pairs = comparison.pairs_on(split)
    names = list(pairs[0].splits[split].metrics)
    rows = [(name, pair) for name in names for pair in pairs]
    series: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        points: list[dict[str, Any]] = []
        intervals: list[list[float | str]] = []
        for index, (name, owner) in enumerate(rows):
            cell = pair.splits[split].metrics[name].difference
            if owner is not pair or cell.value is None:
                continue
            label = f"{name.replace('_', ' ')}: {difference_text(cell)}"
            points.append({"name": label, "value": [round(cell.value, 6), index]})
            if cell.low is not None and cell.high is not None:
                intervals += [[round(cell.low, 6), index], [round(cell.high, 6), index], _GAP]
        color = {"color": f"var(--{COLORS[number % len(COLORS)]})"}
        series += [
            {
                "type": "line", "name": pair.name, "data": intervals, "symbol": "none", "silent": True,
                "lineStyle": {**color, "width": 3, "opacity": 0.55}, "itemStyle": color,
            },
            {"type": "scatter", "name": pair.name, "data": points, "symbolSize": 10, "itemStyle": color},
        ]  # fmt: skip
    series[0]["markLine"] = {
        "symbol": "none", "silent": True, "data": [{"xAxis": 0}], "label": {"show": False},
        "lineStyle": {"color": "var(--soft)", "type": "dashed"},
    }  # fmt: skip
    middle = len(pairs) // 2  # of several runs the one in the middle carries the name of the metric
    return {
        "legend": {"top": 0, "left": 0, "type": "scroll", "data": [pair.name for pair in pairs]},
        "tooltip": {"trigger": "item", "formatter": "{b}"},
        "grid": {"top": 36, "left": 8, "right": 20, "bottom": 44, "containLabel": True},
        "xAxis": {
            "type": "value", "name": f"difference from {comparison.runs[0].name}", "nameLocation": "middle",
            "nameGap": 26, "scale": True, "nameTruncate": {"maxWidth": 320},
        },
        "yAxis": {
            "type": "category", "inverse": True, "axisTick": {"show": False},
            "data": [
                name.replace("_", " ") if index % len(pairs) == middle else "\u200b" * index
                for index, (name, _) in enumerate(rows)
            ],
        },
        "series": series,
    }  # fmt: skip


def difference_chart_height(comparison: RunsComparison, split: str) -> int:
    """Return the height of the chart in CSS pixels."""
    pairs = comparison.pairs_on(split)
    return 100 + len(pairs[0].splits[split].metrics) * (12 + 22 * len(pairs))
