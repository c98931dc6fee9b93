"""Terminal tables of a comparison of runs."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.report.comparison_text import cost_rows, difference_text, largest_class_differences, result_text
from finetune.report.terminal import print_line
from finetune.runs.comparison import RunsComparison
from finetune.runs.results import format_number

_TEXTS = {"", "metric", "run", "class", "key"}  # columns of words
_INTERVALS = {"difference", "recall", "F1"}  # columns that are not wrapped


def print_comparison(console: Console, comparison: RunsComparison) -> None:
    """Print the differences with their intervals, the tests, the classes, the recipes, the costs and the heads."""
    first = escape(comparison.runs[0].name)
    for split in comparison.splits():
        _print_split(console, comparison, split)
    for pair in comparison.pairs:
        for split, reason in pair.skipped.items():
            print_line(console, f"[yellow]{escape(pair.name)}: {split} was not compared: {escape(reason)}.[/]")
    if comparison.recipe:
        print_line(console, "Recipe keys with different values")
        _print_table(console, ["key", *(run.name for run in comparison.runs)], [
            [key, *values] for key, values in comparison.recipe.items()
        ])  # fmt: skip
    print_line(console, "Cost")
    _print_table(console, ["", *(run.name for run in comparison.runs)], cost_rows(comparison))
    for pair in comparison.pairs:
        if pair.head_agreement is not None:
            tau = escape(pair.head_agreement.text())
            print_line(
                console,
                f"Kendall's tau of the head rankings, {escape(pair.name)} and {first}: {tau} ({pair.head_note})",
            )
        elif pair.head_note:
            print_line(console, escape(f"{pair.name}: {pair.head_note}"))
    for note in comparison.notes:
        print_line(console, f"[yellow]{escape(note)}[/]")


def _print_split(console: Console, comparison: RunsComparison, split: str) -> None:
    """Print the differences on one split, the test of each pair, and the classes that changed most."""
    first = comparison.runs[0].name
    pairs = [(pair.name, pair.splits[split]) for pair in comparison.pairs_on(split)]
    print_line(console, escape(f"{split} ({pairs[0][1].rows} rows): difference from {first} with 95 % intervals"))
    _print_table(console, ["metric", "run", "score", f"score of {first}", "difference"], [
        [name, run, format_number(value.second, 4), format_number(value.first, 4), difference_text(value.difference)]
        for name in pairs[0][1].metrics
        for run, result in pairs
        if (value := result.metrics[name])
    ])  # fmt: skip
    for run, result in pairs:
        print_line(console, escape(f"{run}: {result_text(result, len(pairs))}"))
    classes = [
        [row.label, run, f"{row.support}", difference_text(row.recall, 3), difference_text(row.f1, 3)]
        for run, result in pairs
        for row in largest_class_differences(result)
    ]
    if classes:
        _print_table(console, ["class", "run", "rows", "recall", "F1"], classes)
    for note in dict.fromkeys(note for _, result in pairs for note in result.notes):
        print_line(console, f"[yellow]{split}: {escape(note)}[/]")


def _print_table(console: Console, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for column in columns:
        table.add_column(
            escape(column),
            justify="left" if column in _TEXTS else "right",
            overflow="fold",
            no_wrap=column in _INTERVALS,
        )
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
