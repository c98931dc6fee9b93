"""The page `comparison.html`: one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from finetune.report.charts import chart_element
from finetune.report.comparison_charts import difference_chart, difference_chart_height
from finetune.report.comparison_heads import compared_maps
from finetune.report.comparison_text import cost_rows, difference_text, result_text
from finetune.report.page import templates
from finetune.runs.comparison import ChangedRow, RunsComparison
from finetune.runs.head_results import HeadScores

_MAX_CHANGED = 200  # rows of the page that changed sides


def render_comparison(
    comparison: RunsComparison,
    changed: Sequence[ChangedRow] = (),
    rankings: Sequence[tuple[str, HeadScores | None]] = (),
    *,
    changed_file: str | None = None,
) -> str:
    """Return the HTML page of a comparison.

    Args:
        changed: the rows that changed sides between the first run and another one.
        rankings: the name of each run, and its leading ranking of the heads; None without one.
        changed_file: the file beside the page that has all changed rows.
    """
    first = comparison.runs[0].name

    def differences(split: str) -> Markup:
        label = f"Differences from {first} on the {split} rows; the table below has the numbers"
        return chart_element(difference_chart(comparison, split), difference_chart_height(comparison, split), label)

    context = {
        "comparison": comparison,
        "first": first,
        "title": " and ".join(run.name for run in comparison.runs),
        "costs": cost_rows(comparison),
        "differences": differences,
        "difference_text": difference_text,
        "result_text": result_text,
        "changed": changed,
        "shown_changed": changed[:_MAX_CHANGED],
        "changed_file": changed_file,
        "maps": compared_maps(rankings) if rankings else [],
    }
    return templates().get_template("comparison.html").render(context)
