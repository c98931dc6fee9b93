"""Terminal tables of data quality: rows, labels and lengths of every split, and the findings with examples.

C classes
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.errors import printable, shorten
from finetune.report.terminal import print_line
from finetune.runs.data_quality import NOTE, WARNING, DataQuality, Finding, SplitQuality

_MAX_LABELS = 20
_MAX_TEXT = 100  # characters of an example
_BAR = 24  # characters of the longest bar


def print_data_quality(console: Console, quality: DataQuality) -> None:
    """Print the rows, labels and token lengths of every split, then the warnings, then the notes."""
    _print_tokens(console, quality)
    _print_histogram(console, quality.splits)
    _print_labels(console, quality.splits)
    for level, title in ((WARNING, "Warnings"), (NOTE, "Notes")):
        findings = quality.with_level(level)
        if findings:
            print_line(console, f"{title}:")
        for finding in findings:
            _print_finding(console, finding)
    for sentence in quality.unchecked:
        print_line(console, escape(sentence))
    count = len(quality.with_level(WARNING))
    print_line(console, f"{count or 'No'} warning{'s' * (count != 1)}. `finetune help data-quality` explains them.")


def _print_tokens(console: Console, quality: DataQuality) -> None:
    """Print the rows and the quantiles of the token lengths of every split."""
    print_line(console, "Tokens per row before truncation")
    table = Table()
    headings = ("split", "rows", "50 %", "90 %", "95 %", "99 %", "max", "truncated", "unknown")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=heading == "split")
    for name, split in quality.splits.items():
        tokens = split.tokens
        lengths = (tokens.median, tokens.p90, tokens.p95, tokens.p99, tokens.longest)
        shares = (f"{split.truncated_share:.1%}", f"{split.unknown_share:.1%}")
        table.add_row(name, f"{split.rows:,}", *map(str, lengths), *shares)
    console.print(table)
    print_line(
        console,
        f"data.max_length is {quality.max_length}; {quality.suggested_max_length} fits 99 % of the training rows, or "
        "is the model's limit.",
    )


def _print_histogram(console: Console, splits: Mapping[str, SplitQuality]) -> None:
    """Print a bar of the training rows for each range of lengths."""
    tokens = splits["train"].tokens
    print_line(console, "Training rows by number of tokens")
    table = Table(box=None, show_header=False)
    for justify in ("right", "left", "right"):
        table.add_column(justify=justify)
    top = max(tokens.bin_rows)
    for low, high, rows in zip(tokens.bin_edges, tokens.bin_edges[1:], tokens.bin_rows, strict=False):
        bar = "█" * round(_BAR * rows / top) or ("▏" if rows else "")
        table.add_row(f"{low + 1}–{high}" if high > low + 1 else f"{high}", bar, f"{rows:,}")
    console.print(table)


def _print_labels(console: Console, splits: Mapping[str, SplitQuality]) -> None:
    """Print the rows per label of every split, the largest class first, or the values of a regression."""
    counts = splits["train"].label_counts
    if not counts:
        for name, split in splits.items():
            if values := split.values:
                print_line(
                    console,
                    f"{name} values: {values.lowest:g} to {values.highest:g}, mean {values.mean:.4g}, standard "
                    f"deviation {values.standard_deviation:.4g}",
                )
        return
    print_line(console, f"Rows per label ({len(counts)} labels)")
    table = Table()
    table.add_column("label", overflow="fold")
    for name in splits:
        table.add_column(name, justify="right")
    ordered = sorted(counts, key=lambda label: -counts[label])
    for label in ordered[:_MAX_LABELS]:
        cells = [
            f"{split.label_counts[label]:,} ({split.label_counts[label] / split.rows:.1%})" for split in splits.values()
        ]
        table.add_row(escape(printable(shorten(label, 60))), *cells)
    console.print(table)
    if len(ordered) > _MAX_LABELS:
        rest = [counts[label] for label in ordered[_MAX_LABELS:]]
        print_line(console, f"and {len(rest)} more labels with {rest[-1]:,} to {rest[0]:,} training rows each.")
    for name, split in splits.items():
        if sizes := split.label_set_sizes:
            print_line(
                console,
                f"{name}: {sizes.mean:.2f} labels per row, at most {sizes.largest}; {sizes.rows_without_label:,} rows "
                "without a label",
            )


def _print_finding(console: Console, finding: Finding) -> None:
    """Print a finding, and below it the examples; rows that belong together follow each other."""
    style = "yellow" if finding.level == WARNING else "default"
    print_line(console, f"  [{style}]{escape(printable(finding.message))}.[/]")
    for group in finding.examples:
        for number, row in enumerate(group):
            label = f" [{shorten(row.label, 40)}]" if row.label else ""
            mark = "-" if number == 0 else " "
            line = f"    {mark} {row.split} row {row.row}{label}: {shorten(row.text, _MAX_TEXT)}"
            print_line(console, escape(printable(line)))
