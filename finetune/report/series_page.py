"""The HTML report and the model card of a series."""

from __future__ import annotations

from pathlib import Path

from finetune.report.card import model_name, render_card
from finetune.report.card_metadata import saved_subject
from finetune.report.page import templates
from finetune.report.run_record import read_record
from finetune.report.series_summary import heads_sentence
from finetune.runs.atomic_files import write_text
from finetune.runs.run_files import read_recipe
from finetune.runs.run_folder import SeriesFolder
from finetune.runs.series import SeriesResult, read_series


def write_series_report(path: Path) -> Path:
    """Write `report.html` and the model card of the series in a folder, and return the path of the report.

    Raises:
        FinetuneError: the folder contains no series, none of its runs is finished, or a file is damaged.
    """
    folder, result = SeriesFolder(path), read_series(path)
    write_text(folder.report, render_series(result, folder))
    if result.chosen_seed is not None:
        record = read_record(folder.member(result.chosen_seed))
        subject = saved_subject(path.absolute().name, folder.model, record.recipe)
        write_text(folder.card, render_card(record, subject, result))
    return folder.report


def render_series(result: SeriesResult, folder: SeriesFolder) -> str:
    """Return the HTML report of a series."""
    recipe = read_recipe(folder, read_data=False)
    shown = next((split for split in ("test", "validation") if split in result.splits), None)
    context = {
        "name": folder.path.absolute().name,
        "result": result,
        "shown": shown,
        "recipe": recipe,
        "recipe_text": folder.recipe.read_text(encoding="utf-8"),
        "heads_sentence": heads_sentence(result),
        "folders": {member.seed: folder.member(member.seed) for member in result.members},
        "model": model_name(recipe),
    }
    return templates().get_template("series.html").render(context)
