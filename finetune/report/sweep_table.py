"""Terminal output of a sweep: a line per finished trial, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.errors import shorten
from finetune.progress import format_duration
from finetune.recipe.sweep_space import ParameterValue
from finetune.report.terminal import print_line
from finetune.runs.sweep_results import SweepFolder, SweepResult, SweepTrial, by_first_objective

_MAX_ROWS = 20  # trials in the table
_MAX_ERROR = 160  # characters


def value_text(value: float | str | None) -> str:
    """Return a parameter or a value as text, a float with four significant digits."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parameters_text(parameters: Mapping[str, ParameterValue]) -> str:
    """Return "learning_rate 3e-05, r 8": the parameters by the last part of their names."""
    short = [name.rpartition(".")[2] for name in parameters]
    names = short if len(set(short)) == len(short) else list(parameters)
    return ", ".join(f"{name} {value_text(value)}" for name, value in zip(names, parameters.values(), strict=True))


def _values_text(trial: SweepTrial) -> str:
    return ", ".join(f"{name} {value_text(value)}" for name, value in trial.values.items())


def print_started(console: Console, result: SweepResult, folder: SweepFolder) -> None:
    """Print what the sweep does, and how many trials are already finished."""
    total = "" if result.planned is None else f" of {result.planned}"
    finished = len(result.finished())
    state = f", {finished}{total} trials finished" if finished else f", {result.planned or 'any number of'} trials"
    goals = ", ".join(f"{each.direction} {each.name}" for each in result.objectives)
    seeds = f", {len(result.seeds)} seeds each" if result.seeds else ""
    print_line(
        console,
        f"Sweep {escape(result.name)} ({result.sampler}): {goals}{state}{seeds}. Folder: {escape(str(folder.path))}",
    )


@contextmanager
def show_running(console: Console, number: int, parameters: Mapping[str, ParameterValue]) -> Iterator[None]:
    """Show in a terminal, while the block runs, which trial is running."""
    if not console.is_terminal:
        yield
        return
    with console.status(f"trial {number} is running: {escape(parameters_text(parameters))}"):
        yield


def print_finished(console: Console, result: SweepResult, number: int, workers: int) -> None:
    """Print one line: how a trial ended, the best so far, and the time left."""
    trial = result.trial(number)
    count = f"{len(result.finished())} of {result.planned}" if result.planned else f"{len(result.finished())}"
    ended = {"complete": _values_text(trial), "pruned": f"pruned at {_values_text(trial)}"}.get(trial.state)
    ended = ended or f"[yellow]failed: {escape(shorten(trial.error, _MAX_ERROR))}[/]"
    seconds = f" in {format_duration(trial.seconds)}" if trial.seconds is not None else ""
    parts = [f"{count} finished: trial {number} ({escape(parameters_text(trial.parameters))}) {ended}{seconds}"]
    if result.best:
        best = result.trial(result.best[0])
        front = f", one of {len(result.best)} that none beats in every objective" if len(result.best) > 1 else ""
        parts.append(f"best {_values_text(best)} (trial {best.number}{front})")
    if (left := seconds_left(result, workers)) is not None:
        parts.append(f"about {format_duration(left)} left")
    print_line(console, "; ".join(parts))


def seconds_left(result: SweepResult, workers: int) -> float | None:
    """Return the estimated time until all trials are finished, by the mean of the finished ones; None if unknown."""
    seconds = [trial.seconds for trial in result.finished() if trial.seconds is not None]
    if result.planned is None or not seconds or len(result.finished()) >= result.planned:
        return None
    return sum(seconds) / len(seconds) * (result.planned - len(result.finished())) / workers


def print_sweep(console: Console, result: SweepResult, folder: SweepFolder) -> None:
    """Print the best trials, the importance of the parameters, and where the results are."""
    complete = by_first_objective(result)
    table = Table()
    table.add_column("trial", justify="right")
    for objective in result.objectives:
        table.add_column(objective.name, justify="right", overflow="fold")
    for parameter in result.parameters:
        table.add_column(escape(parameter.name), overflow="fold")
    table.add_column("time", justify="right")
    for trial in complete[:_MAX_ROWS]:
        style = "bold" if trial.number in result.best else None
        values = [value_text(trial.values[objective.name]) for objective in result.objectives]
        parameters = [escape(value_text(trial.parameters[parameter.name])) for parameter in result.parameters]
        time = "" if trial.seconds is None else format_duration(trial.seconds)
        table.add_row(str(trial.number), *values, *parameters, time, style=style)
    if complete:
        shown = f", the best {_MAX_ROWS} of {len(complete)}" if len(complete) > _MAX_ROWS else ""
        print_line(console, f"Trials by {result.objectives[0].name} on the validation rows{shown}")
        console.print(table)
    counts = [f"{len(result.of_state(state))} {state}" for state in ("complete", "pruned", "failed", "running")]
    print_line(console, f"Trials: {', '.join(count for count in counts if not count.startswith('0 '))}.")
    for name, shares in result.importance.items():
        listed = ", ".join(f"{escape(parameter)} {share:.0%}" for parameter, share in shares.items())
        print_line(console, f"Importance for {name} (share of its variance, fANOVA): {listed}")
    if result.best:
        print_line(console, f"Best recipe: {escape(str(folder.best_recipe))} (trial {result.best[0]})")
    print_line(console, f"Report: {escape(str(folder.report))}")
