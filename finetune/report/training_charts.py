"""Charts of the course of training, from the history of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report.charts import COLORS, ChartOption

_MAX_SYMBOLS = 40  # a line of more points shows no symbols
_EVALUATION = "eval_"

HistoryEntry = Mapping[str, int | float | None]
Points = list[list[float]]


@dataclass(frozen=True)
class TrainingChart:
    """A chart of the training section, with its title and a label for screen readers."""

    title: str
    option: ChartOption
    label: str


def training_charts(history: Sequence[HistoryEntry], best_step: int | None) -> list[TrainingChart]:
    """Return a chart of each quantity that was logged: loss, metrics, learning rate, gradient norm and throughput.

    Args:
        best_step: the step whose weights were saved, which the charts of evaluations mark.
    """
    metrics = dict.fromkeys(name for entry in history for name in entry if name.startswith(_EVALUATION))
    metrics.pop("eval_loss", None)
    charts = [
        ("Loss", {"training": "loss", "validation": "eval_loss"}, best_step),
        (
            "Validation metrics",
            {name.removeprefix(_EVALUATION).replace("_", " "): name for name in metrics},
            best_step,
        ),
        ("Learning rate", {"learning rate": "learning_rate"}, None),
        ("Gradient norm before clipping", {"gradient norm": "grad_norm"}, None),
        ("Rows per second", {"rows/s": "samples_per_second"}, None),
    ]
    return [
        TrainingChart(title, _step_chart(series, mark), _label(title, series))
        for title, keys, mark in charts
        if (series := _logged(history, keys))
    ]


def _logged(history: Sequence[HistoryEntry], keys: Mapping[str, str]) -> dict[str, Points]:
    """Return the logged values of each key as [step, value], by name; names without a value are left out."""
    series = {
        name: [
            [float(entry["step"] or 0), float(f"{entry[key]:.6g}")] for entry in history if entry.get(key) is not None
        ]
        for name, key in keys.items()
    }
    return {name: points for name, points in series.items() if points}


def _label(title: str, series: Mapping[str, Points]) -> str:
    """Return the chart in words: what it shows, and the first and the last value of each line."""
    parts = [f"{name} from {points[0][1]:g} to {points[-1][1]:g}" for name, points in series.items()]
    return f"{title} by optimizer step: {'; '.join(parts)}"


def _step_chart(series: Mapping[str, Points], best_step: int | None) -> ChartOption:
    """Return lines by optimizer step, with a vertical line at the best step."""
    lines: list[dict[str, Any]] = [
        {
            "type": "line", "name": name, "data": points, "showSymbol": len(points) <= _MAX_SYMBOLS, "symbolSize": 6,
            "itemStyle": {"color": f"var(--{COLORS[number % len(COLORS)]})"}, "lineStyle": {"width": 2},
        }
        for number, (name, points) in enumerate(series.items())
    ]  # fmt: skip
    if best_step is not None:
        lines[0]["markLine"] = {
            "symbol": "none", "silent": True, "data": [{"xAxis": best_step}],
            "lineStyle": {"color": "var(--soft)", "type": "dashed"},
            "label": {"formatter": "saved weights", "color": "var(--soft)", "position": "insideEndTop"},
        }  # fmt: skip
    return {
        "legend": {"top": 0, "left": 0, "type": "scroll", "show": len(series) > 1},
        "tooltip": {"trigger": "axis"},
        "grid": {"top": 36 if len(series) > 1 else 12, "left": 8, "right": 18, "bottom": 34, "containLabel": True},
        "xAxis": {
            "type": "value", "name": "optimizer step", "nameLocation": "middle", "nameGap": 26, "min": 0,
            "max": max(points[-1][0] for points in series.values()),
        },
        "yAxis": {"type": "value", "scale": True, **_range([y for points in series.values() for _, y in points])},
        "series": lines,
    }  # fmt: skip


def _range(values: Sequence[float]) -> dict[str, float]:
    """Return limits of an axis for values that are almost equal, so that rounding does not look like a change."""
    low, high = min(values), max(values)
    margin = 0.05 * max(abs(low), abs(high))
    return (
        {"min": float(f"{low - margin:.2g}"), "max": float(f"{high + margin:.2g}")}
        if margin > 0 and high - low < margin
        else {}
    )
