"""Terminal table of the scores, size and speed of a pruned model."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.report.terminal import print_line
from finetune.runs.pruning_result import PruningResult
from finetune.runs.results import format_number


def print_pruning(console: Console, result: PruningResult, folder: str) -> None:
    """Print what pruning removed, the scores before and after, model size and speed."""
    print_line(console, f"{result.removed_text()}. Chosen by: {escape(result.chosen_by)}.")
    table, states = Table(), result.states()
    table.add_column("metric", overflow="fold")
    for title, _ in states:
        table.add_column(title, justify="right", overflow="fold")
    for split, metrics in result.scores_before.items():
        for metric in metrics:
            table.add_row(f"{split} {metric}", *(format_number(scores[split][metric], 4) for _, scores in states))
    if table.row_count:
        console.print(table)
    else:
        print_line(console, "There are no validation or test rows, so there are no scores.")
    for text in result.difference_texts():
        print_line(console, f"{text}.")
    if "within" in result.chosen_by:
        print_line(
            console,
            "The validation rows chose how much is removed, so their score after pruning is slightly optimistic.",
        )
    before, after = result.before, result.after
    print_line(
        console,
        f"Parameters {before.parameters:,} to {after.parameters:,}; {before.model_bytes / 1e6:.3g} to "
        f"{after.model_bytes / 1e6:.3g} MB on disk; {before.rows_per_second:.0f} to {after.rows_per_second:.0f} rows/s "
        f"({result.speedup():.2f} times); the two measurements were interleaved.",
    )
    print_line(
        console,
        f"Pruned model: {escape(folder)}/model; for plain transformers, with zeros for what was removed: "
        f"{escape(folder)}/zeroed",
    )
