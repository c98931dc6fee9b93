"""The page `comparison.html`: one file that needs no network."""

from __future__ import annotations

from markupsafe import Markup

from finetune.report.comparison_text import (
    cost_rows,
    difference_text,
    result_text,
)
from finetune.report.figures import difference_plot, plotly_script
from finetune.report.page import templates
from finetune.runs.comparison import RunsComparison


def render_comparison(comparison: RunsComparison) -> str:
    """Return the HTML page of a comparison."""
    environment = templates()
    environment.filters.update(difference=difference_text)
    environment.globals.update(
        difference_plot=lambda split: Markup(difference_plot(comparison, split)),
        result_text=result_text,
    )
    context = {
        "comparison": comparison,
        "first": comparison.runs[0].name,
        "title": " and ".join(run.name for run in comparison.runs),
        "costs": cost_rows(comparison),
        "plotly": Markup(plotly_script()),
    }
    return environment.get_template("comparison.html").render(context)
