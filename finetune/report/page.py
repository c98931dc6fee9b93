"""The HTML report, and the function that writes it and the model card into a run folder.

The page is `report.html`, which includes the templates of `sections/` in the order of SECTIONS. To add a section, add
its template to `sections/` and its name to SECTIONS. A chart is a function that
returns an option of the chart library (charts.py).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from finetune.report.card import format_difference, interval_or_dash, model_name, render_card
from finetune.report.card_metadata import saved_subject
from finetune.report.charts import chart_element
from finetune.report.confusions import confused_pairs, confusion_order
from finetune.report.embedding import chart_library, script
from finetune.report.explanation_data import gap_text, shown_tokens
from finetune.report.head_charts import agreement_chart, agreement_rows, has_intervals, pruning_chart
from finetune.report.head_data import head_elements
from finetune.report.head_maps import change_maps, head_maps
from finetune.report.headline import cautions, cost_text, headline
from finetune.report.label_errors import error_groups, error_positions
from finetune.report.row_columns import row_elements
from finetune.report.run_record import RunRecord, read_record
from finetune.report.training_charts import training_charts
from finetune.report.weak_slices import WeakSlices, find_weak_slices
from finetune.runs.atomic_files import write_text
from finetune.runs.removable_heads import removable_heads
from finetune.runs.results import ConfidenceScores, SplitScores, format_number, format_significant
from finetune.runs.run_folder import RunFolder

SECTIONS = (
    "slice",
    "scores",
    "baselines",
    "classes",
    "confusion",
    "calibration",
    "thresholds",
    "lengths",
    "values",
    "head_importance",
    "row_explanations",
    "pruning_curves",
    "leave_one_out",
    "head_names",
    "weight_changes",
    "weak_slices",
    "label_errors",
    "errors",
    "training",
    "data_quality",
    "run",
)


def write_report(folder: RunFolder, overrides: Sequence[str] = ()) -> None:
    """Write `report.html`, a single file that needs no network, and `README.md`, the model card.

    Args:
        overrides: changes to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the run is not finished, or one of its files is damaged.
    """
    record = read_record(folder, overrides)
    name = folder.path.name
    subject = saved_subject(name, folder.model, record.recipe)
    write_text(folder.report, render_report(record, name, folder.recipe.read_text(encoding="utf-8")))
    write_text(folder.card, render_card(record, subject))


def render_report(record: RunRecord, name: str, recipe_text: str) -> str:
    """Return the HTML report."""
    context = {
        "name": name,
        "record": record,
        "shown": record.shown_split(),
        "recipe_text": recipe_text,
        "model": model_name(record.recipe),
        "sections": SECTIONS,
        "rows": _rows(record),
        "weak": _weak_slices(record),
        "error_groups": error_groups(record),
    }
    return templates().get_template("report.html").render(context)


def _rows(record: RunRecord) -> Markup:
    """Return the elements with the predicted rows; empty if no split was scored."""
    shown = record.shown_split()
    if record.predictions is None or shown is None:
        return Markup()
    errors, thresholds = error_positions(record), record.thresholds()
    return row_elements(record.predictions, record.label_names(), shown, errors, thresholds)


def _weak_slices(record: RunRecord) -> WeakSlices | None:
    """Return the slices with a high error rate; None if no split was scored, or in regression."""
    shown = record.shown_split()
    return None if record.predictions is None or shown is None else find_weak_slices(record.predictions, shown)


@cache  # a template is compiled when it is first used
def templates() -> Environment:
    """Return the templates of this package, with the figures as functions that they can call."""
    templates = Environment(
        loader=PackageLoader("finetune.report", ""),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(interval=interval_or_dash, number=format_number, signed=format_difference)
    templates.filters.update(removable_heads=removable_heads, significant=format_significant)
    templates.filters.update(headline=headline, cautions=cautions, cost_text=cost_text, base64=_base64)
    templates.filters.update(training_charts=training_charts, confidence_of=confidence_of)
    templates.filters.update(confusion_order=confusion_order, confused_pairs=confused_pairs)
    templates.filters.update(head_maps=head_maps, change_maps=change_maps)
    templates.filters.update(shown_tokens=shown_tokens, gap_text=gap_text)
    templates.filters.update(
        agreement_chart=agreement_chart,
        agreement_rows=agreement_rows,
        pruning_chart=pruning_chart,
        has_intervals=has_intervals,
    )
    templates.globals.update(chart_library=chart_library, script=script, chart_element=chart_element)
    templates.globals.update(head_elements=head_elements)
    return templates


def confidence_of(scores: Mapping[str, SplitScores]) -> dict[str, ConfidenceScores]:
    """Return how reliable the probabilities are, of each split for which this was computed."""
    return {split: result.confidence for split, result in scores.items() if result.confidence is not None}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")
