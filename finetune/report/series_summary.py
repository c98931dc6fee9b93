"""The terminal summary of a series."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.report.terminal import format_metric, print_line
from finetune.runs.run_folder import SeriesFolder
from finetune.runs.series import SeriesResult


def print_series(console: Console, result: SeriesResult, path: Path) -> None:
    """Print every metric over the seeds, the chosen run, the agreement of the head rankings, and the folder."""
    finished, failed = (len(result.with_status(status)) for status in ("finished", "failed"))
    runs = f"{finished} runs" if not failed else f"{finished} of {len(result.members)} runs; {failed} failed"
    print_line(console, f"\nSeries of {runs}, {result.seconds():.0f} s in all runs together")
    for split, metrics in result.splits.items():
        table = Table()
        table.add_column(f"{split} ({result.rows[split]} rows)", overflow="fold")
        for title in ("mean", "SD", "lowest to highest"):
            table.add_column(title, justify="right", overflow="fold")
        for name, statistics in metrics.items():
            values = [value for value in result.values(split, name).values() if value is not None]
            extremes = f"{min(values):.3f} to {max(values):.3f}" if values else ""
            deviation = "" if statistics.standard_deviation is None else f"{statistics.standard_deviation:.4f}"
            table.add_row(name, format_metric(statistics.mean), deviation, extremes)
        console.print(table)
    if result.interval_note:
        print_line(console, f"SD: standard deviation over seeds. In brackets: {escape(result.interval_note)}.")
    if text := heads_sentence(result):
        print_line(console, escape(text))
    folder = SeriesFolder(path)
    if result.chosen_seed is not None:
        print_line(
            console,
            f"Model of the series: seed {result.chosen_seed} ({escape(result.choice)}): {escape(str(folder.model))}",
        )
        print_line(console, f"Report: {escape(str(folder.report))}")


def heads_sentence(result: SeriesResult) -> str:
    """Return how well the head rankings of different seeds agree, beside other rows with the same seed; or ""."""
    heads = result.heads
    if heads is None:
        return ""
    text = (
        f"Kendall's tau between the {heads.method} rankings of two seeds: {heads.tau.text()} on average (in brackets: "
        f"minimum and maximum of {len(heads.pairs)} pairs)."
    )
    if heads.rows_tau is None:
        return text
    return (
        f"{text} With the same seed, rankings from {heads.rows_note} have tau {heads.rows_tau:.2f}: other rows alone "
        "change the ranking that much, so two seeds can hardly agree better."
    )
