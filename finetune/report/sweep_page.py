"""The HTML report of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.report.page import templates
from finetune.report.sweep_figures import objective_text, short_names, sweep_figures
from finetune.runs.atomic_files import write_text
from finetune.runs.results import format_number, format_significant
from finetune.runs.sweep_results import SweepFolder, SweepResult, SweepTrial, read_sweep
from finetune.runs.trial_measures import Measure, read_measures

_COSTS = ("train_seconds", "parameters", "trainable_parameters")  # objectives that are not metrics


def write_sweep_report(path: Path) -> Path:
    """Write `report.html`, a single file that needs no network, into the folder of a sweep, and return its path.

    Raises:
        FinetuneError: the folder contains no sweep, or a file of the sweep or of a trial is damaged.
    """
    folder = SweepFolder(path)
    write_text(folder.report, render_sweep(read_sweep(path), folder))
    return folder.report


def render_sweep(result: SweepResult, folder: SweepFolder) -> str:
    """Return the HTML report of a sweep."""
    measures, best = _measures(result, folder), folder.best_recipe
    titles = list(dict.fromkeys(title for values in measures.values() for title in values))
    context = {
        "result": result,
        "best_trials": [result.trial(number) for number in result.best],
        "objectives": {each.name: objective_text(each) for each in result.objectives},
        "figures": sweep_figures(result),
        "measures": measures,
        "measure_titles": titles,
        "shows_test": any(title.startswith("test ") for title in titles),
        "best_recipe": best.read_text(encoding="utf-8") if result.best and best.is_file() else None,
        "seconds": sum(trial.seconds or 0.0 for trial in result.trials),
        "value_text": value_text,
        "setting_text": setting_text,
        "labels": short_names(result.parameters),
    }
    return templates().get_template("sweep.html").render(context)


def setting_text(value: object) -> str:
    """Return the value of a parameter, a number with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def value_text(trial: SweepTrial, name: str) -> str:
    """Return the value of an objective, or "" if the trial has none."""
    value = trial.values.get(name)
    if value is None:
        return ""
    return format_significant(value) if name in _COSTS else format_number(value, 4)


def _measures(result: SweepResult, folder: SweepFolder) -> dict[int, Mapping[str, Measure]]:
    """Return what each complete trial measured, by number and title; trials whose folder is gone are left out."""
    metric = _shown_metric(result)
    read: dict[int, Mapping[str, Measure]] = {}
    for trial in result.of_state("complete"):
        path = folder.trial(trial.number)
        if path.is_dir():
            read[trial.number] = {measure.title: measure for measure in read_measures(path, metric)}
    return read


def _shown_metric(result: SweepResult) -> str:
    """Return the metric whose scores the table of measurements shows: the first objective that is one."""
    metrics = [objective.name for objective in result.objectives if objective.name not in _COSTS]
    complete = result.of_state("complete")
    stored = list(complete[0].metrics) if complete else []
    return next(iter([*metrics, *stored]), "loss")
