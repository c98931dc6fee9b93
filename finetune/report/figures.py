"""The figures of the report, drawn by Plotly. Each function returns an HTML fragment.

C classes
"""

from __future__ import annotations

import hashlib

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from finetune.report.comparison_text import difference_text
from finetune.runs.comparison import RunsComparison

_FONT = {
    "family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    "size": 13,
    "color": "#1f2933",
}
_BLUE, _ORANGE = "#2563eb", "#ea580c"
_LINES = (_BLUE, _ORANGE, "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#4d7c0f", "#be185d", "#475569")


def plotly_script() -> str:
    """Return the JavaScript of Plotly, so that the report needs no network."""
    script: str = get_plotlyjs()
    return script


def difference_plot(comparison: RunsComparison, split: str) -> str:
    """Return the difference of every metric from the first run with its interval, a color per run."""
    figure, pairs = go.Figure(), comparison.pairs_on(split)
    names = list(pairs[0].splits[split].metrics)
    for number, pair in enumerate(pairs):
        shift = (number - (len(pairs) - 1) / 2) * 0.6 / len(pairs)  # runs of a metric are drawn below each other
        cells = [pair.splits[split].metrics[name].difference for name in names]
        known = [(index, cell.value, cell.low, cell.high) for index, cell in enumerate(cells) if cell.value is not None]
        figure.add_scatter(
            x=[value for _, value, _, _ in known],
            y=[index + shift for index, _, _, _ in known],
            text=[f"{names[index]}: {difference_text(cells[index])}" for index, _, _, _ in known],
            hovertemplate="%{text}",
            error_x={
                "type": "data",
                "array": [0 if high is None else high - value for _, value, _, high in known],
                "arrayminus": [0 if low is None else value - low for _, value, low, _ in known],
                "thickness": 2,
            },
            mode="markers",
            marker={"color": _LINES[number % len(_LINES)], "size": 9},
            name=pair.name,
            showlegend=True,
        )
    figure.add_vline(x=0, line={"color": "#5f6c7b", "width": 1, "dash": "dot"})
    figure.update_xaxes(title=f"difference from {comparison.runs[0].name}")
    ticks = [name.replace("_", " ") for name in names]
    positions = list(range(len(names)))
    figure.update_yaxes(tickvals=positions, ticktext=ticks, range=[len(names) - 0.5, -0.5], automargin=True)
    return figure_html(figure, 130 + len(names) * (24 + 22 * len(pairs)))


def figure_html(figure: go.Figure, height: int) -> str:
    """Return a figure as an HTML fragment, in the style of the report."""
    figure.update_layout(
        template="plotly_white",
        font=_FONT,
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},  # above the plot, growing upwards
        paper_bgcolor="rgba(0,0,0,0)",
    )
    name = f"figure-{hashlib.sha256(figure.to_json().encode()).hexdigest()[:16]}"  # random names would change each time
    fragment: str = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=name, config={"displayModeBar": False, "responsive": True}
    )
    return fragment
