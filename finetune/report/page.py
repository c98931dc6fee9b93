"""The HTML report and the model card, rendered from a run folder.

The page is `report.html`, which includes the templates of `sections/` in the order of SECTIONS. To add a section, add
its template to `sections/` and its name to SECTIONS. A new figure is a function in `figures.py`, listed in FIGURES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from finetune.recipe import Recipe
from finetune.report.figures import confusion_heatmap, head_heatmap, loss_curve, plotly_script, pruning_plot
from finetune.report.run_record import RunRecord, read_record
from finetune.runs.atomic_files import write_text
from finetune.runs.results import MetricValue, format_number
from finetune.runs.run_folder import RunFolder

SECTIONS = (
    "scores",
    "head_importance",
    "pruning_curves",
    "leave_one_out",
    "weight_changes",
    "loss_and_confusion",
    "classes",
    "errors",
    "run",
)
FIGURES: tuple[Callable[..., str | None], ...] = (loss_curve, confusion_heatmap, head_heatmap, pruning_plot)


def write_report(folder: RunFolder, overrides: Sequence[str] = ()) -> None:
    """Write `report.html`, a single file that needs no network, and `README.md`, the model card.

    Args:
        overrides: changes to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the run is not finished, or one of its files is damaged.
    """
    record = read_record(folder, overrides)
    context = {
        "name": folder.path.name,
        "record": record,
        "shown": shown_split(record),
        "recipe_text": folder.recipe.read_text(encoding="utf-8"),
        "notes": [
            *record.training.notes,
            *(note for split, summary in record.data.items() for note in summary.notes(split)),
        ],
        "model": model_name(record.recipe),
        "sections": SECTIONS,
        "script": Markup(plotly_script()),
    }
    templates = _templates()
    write_text(folder.report, templates.get_template("report.html").render(context))
    write_text(folder.card, templates.get_template("card.md").render(context))


def _templates() -> Environment:
    """Return the templates of this package, with the figures as functions that they can call."""
    templates = Environment(
        loader=PackageLoader("finetune.report", ""),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(interval=interval_or_dash, number=format_number)
    templates.globals.update({figure.__name__: partial(_as_markup, figure) for figure in FIGURES})
    return templates


def _as_markup(figure: Callable[..., str | None], *args: object) -> Markup | None:
    """Return a figure's HTML, marked so that Jinja does not escape it."""
    html = figure(*args)
    return None if html is None else Markup(html)


def shown_split(record: RunRecord) -> str | None:
    """Return the split whose scores are shown in detail: test if it was scored, else validation, else None."""
    return next((split for split in ("test", "validation") if split in record.scores), None)


def interval_or_dash(cell: MetricValue) -> str:
    """Return "[0.862, 0.905]", or a dash if there is no interval."""
    return cell.interval() or "–"


def model_name(recipe: Recipe) -> str:
    """Return the name of the pretrained model, or the model type of a model trained from scratch."""
    return recipe.model.model_name_or_path or f"{recipe.model.model_type} (from scratch)"
