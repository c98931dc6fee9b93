"""Write the report and the model card from a run folder."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from finetune.recipe import Recipe
from finetune.report.figures import confusion_heatmap, head_heatmap, loss_curve, plotly_script, pruning_curves
from finetune.report.run_record import RunRecord, read_record
from finetune.runs.atomic_files import write_text
from finetune.runs.results import MetricValue, format_number
from finetune.runs.run_folder import RunFolder


def write_report(folder: RunFolder, overrides: Sequence[str] = ()) -> None:
    """Write `report.html`, one file that opens offline, and `README.md`, the model card.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the run is not finished, or one of its files is damaged.
    """
    record = read_record(folder, overrides)
    pages = Environment(
        loader=PackageLoader("finetune.report", ""),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["interval"] = interval
    pages.filters["number"] = format_number
    facts = {
        "name": folder.path.name,
        "record": record,
        "shown": shown_split(record),
        "recipe_text": folder.recipe.read_text(encoding="utf-8"),
        "notes": [
            *record.training.notes,
            *(note for split, summary in record.data.items() for note in summary.notes(split)),
        ],
        "model": model_name(record.recipe),
    }
    write_text(folder.report, pages.get_template("report.html").render(**facts, **figures(record)))
    write_text(folder.card, pages.get_template("card.md").render(**facts))


def shown_split(record: RunRecord) -> str | None:
    """Return the split whose tables are shown: test if it was scored, else validation, else none."""
    return next((split for split in ("test", "validation") if split in record.scores), None)


def figures(record: RunRecord) -> dict[str, Markup | None]:
    """Return the report's figures as HTML."""
    split = shown_split(record)
    drawn = {
        "loss_figure": loss_curve(record.history),
        "confusion_figure": confusion_heatmap(record.scores[split]) if split else None,
        "head_figure": head_heatmap(record.heads.methods[0]) if record.heads else None,
        "curve_figure": pruning_curves(record.heads.truth) if record.heads and record.heads.truth else None,
        "script": plotly_script(),
    }
    return {name: None if html is None else Markup(html) for name, html in drawn.items()}


def interval(cell: MetricValue) -> str:
    """Return "[0.862, 0.905]", or a dash where there is no interval."""
    return cell.interval() or "–"


def model_name(recipe: Recipe) -> str:
    """Return the model's name for people."""
    return recipe.model.model_name_or_path or f"{recipe.model.model_type} (from scratch)"
