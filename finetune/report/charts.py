"""Charts as options of Apache ECharts, which `scripts/chart.js` draws in the browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

ChartOption = Mapping[str, Any]
COLORS = ("blue", "orange", "green", "purple", "red", "cyan", "gold", "olive", "pink", "gray")  # of style.css


def chart_element(option: ChartOption, height: int, label: str) -> Markup:
    """Return the HTML element of a chart that needs no further data.

    Args:
        option: an ECharts option, https://echarts.apache.org/en/option.html, without functions.
        height: in CSS pixels.
        label: what the chart shows, for screen readers.
    """
    text = json.dumps(option, separators=(",", ":"), allow_nan=False)
    return Markup('<div class="chart" role="img" aria-label="{}" style="height: {}px" data-option="{}"></div>').format(
        label, height, text
    )
