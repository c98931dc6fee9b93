"""Terminal tables of data, scores, head importance.

L layers, H heads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.runs.baselines import BaselineComparison
from finetune.runs.head_names import NAMES, HeadNames
from finetune.runs.head_results import HeadAnalysis, RankAgreement
from finetune.runs.results import MetricValue, SplitScores, SplitSummary, format_number

_MAX_LABELS = 8
_HEAD_WIDTH = 4  # characters per cell in the table of heads
_SHADES = (
    "on grey11",
    "on grey19",
    "on grey27",
    "black on yellow4",
    "black on gold3",
    "black on orange1",
    "black on bright_yellow",
)


def print_data(console: Console, summary: Mapping[str, SplitSummary], source: str) -> None:
    """Print the rows, labels and token lengths of every split."""
    print_line(console, f"Data: {escape(source)}")
    table = Table()
    for column in ("split", "rows", "labels", "median tokens", "longest", "truncated", "unknown"):
        table.add_column(column, justify="left" if column in ("split", "labels") else "right", overflow="fold")
    for split, split_summary in summary.items():
        counts = [f"{escape(name)} {count}" for name, count in split_summary.label_counts.items()]
        labels = ", ".join(counts[:_MAX_LABELS]) + (
            f", {len(counts) - _MAX_LABELS} more" if len(counts) > _MAX_LABELS else ""
        )
        table.add_row(
            split,
            f"{split_summary.rows}",
            labels,
            f"{split_summary.tokens_median:g}",
            f"{split_summary.longest()}",
            f"{split_summary.truncated_share:.1%}",
            f"{split_summary.unknown_share:.1%}",
        )
    console.print(table)
    for split, split_summary in summary.items():
        for note in split_summary.notes(split):
            print_line(console, f"[yellow]{note}[/]")


def print_line(console: Console, text: str) -> None:
    """Print a line without wrapping it."""
    console.print(text, soft_wrap=True)


def format_metric(cell: MetricValue) -> str:
    """Return "0.884 [0.862, 0.905]", the value alone if there is no interval, or "undefined"."""
    return f"{format_number(cell.value)} {escape(cell.interval())}".rstrip()


def evaluation_line(entry: Mapping[str, Any], *, best: bool) -> str:
    """Return an evaluation of the history as text, such as "step 8, epoch 2.00:  loss 0.4123  best"."""
    values = "  ".join(
        f"{name.removeprefix('eval_')} {format_number(value, 4)}"
        for name, value in entry.items()
        if name.startswith("eval_")
    )
    return f"step {entry['step']}, epoch {entry['epoch']:.2f}:  {values}{'  [green]best[/]' if best else ''}"


def print_scores(console: Console, scores: Mapping[str, SplitScores], summary: Mapping[str, SplitSummary]) -> None:
    """Print every metric of every scored split with its 95 % interval, the notes and the warnings."""
    if not scores:
        return
    print_line(console, "Scores with 95 % intervals")
    table = Table()
    table.add_column("metric", overflow="fold")
    for split, result in scores.items():
        table.add_column(f"{split} ({result.rows} rows)", justify="right", overflow="fold")
    for name in next(iter(scores.values())).metrics:
        table.add_row(name, *(format_metric(result.metrics[name]) for result in scores.values()))
    table.add_row("loss", *(f"{result.loss:.4f}" for result in scores.values()))
    console.print(table)
    for split, result in scores.items():
        for note in (summary[split].overlap_note(split), result.interval_note and f"{split}: {result.interval_note}."):
            if note:
                print_line(console, f"[yellow]{note}[/]")
        for note in result.metric_notes():
            print_line(console, f"[yellow]{split}: {escape(note)}.[/]")
        for warning in result.warnings:
            print_line(console, f"[yellow]{split}: {escape(warning)}.[/]")


def print_classes(console: Console, split: str, scores: SplitScores) -> None:
    """Print precision, recall, F1 and average precision of the labels with the most rows."""
    if not scores.per_class:
        return
    ordered = sorted(scores.per_class, key=lambda row: -row.support)
    table = Table()
    table.add_column(f"label, {split}", overflow="fold")
    for title in ("rows", "precision", "recall", "F1", "average precision"):
        table.add_column(title, justify="right", overflow="fold")
    for row in ordered[:_MAX_LABELS]:
        cells = (row.precision, row.recall, row.f1, row.average_precision)
        table.add_row(
            escape(row.label), f"{row.support}", *("–" if cell is None else format_metric(cell) for cell in cells)
        )
    console.print(table)
    if len(ordered) > _MAX_LABELS:
        print_line(
            console, f"The other {len(ordered) - _MAX_LABELS} labels have fewer rows; the report has all of them."
        )


def print_baselines(console: Console, comparison: BaselineComparison) -> None:
    """Print the score of each baseline on every split below that of the classifier, and the warnings."""
    metric = comparison.metric
    if comparison.fitted:
        print_line(console, "Baselines, and the difference classifier minus baseline with its 95 % interval")
    for split, result in comparison.splits.items() if comparison.fitted else ():
        table = Table()
        table.add_column(f"{split} ({result.rows} rows)", overflow="fold")
        table.add_column(metric, justify="right", overflow="fold")
        table.add_column("difference", justify="right", no_wrap=True)
        table.add_row("this classifier", format_number(result.classifier[metric]), "")
        for name, info in comparison.fitted.items():
            scores = result.baselines[name]
            difference = _difference_text(scores.differences[metric])
            table.add_row(escape(info.description), format_number(scores.metrics[metric]), escape(difference))
        console.print(table)
    if comparison.fitted and comparison.note:
        print_line(console, comparison.note)
    for warning in comparison.warnings():
        print_line(console, f"[yellow]{escape(warning)}[/]")


def _difference_text(difference: MetricValue) -> str:
    """Return "+0.100 [0.020, 0.180]", the difference alone if there is no interval, or "undefined"."""
    value = "undefined" if difference.value is None else f"{difference.value:+.3f}"
    return f"{value} {difference.interval()}".rstrip()


def print_heads(console: Console, analysis: HeadAnalysis, top: int = 5) -> None:
    """Print the L x H importance table of the first method, its top heads, the pruning curves and the warnings."""
    heads = analysis.methods[0]
    ranked = heads.most_important_first()
    values = [cell.value for cell in ranked]
    lowest = min(0.0, min(values))
    span = max(values) - lowest or 1.0
    print_line(
        console,
        f"Head importance by {heads.method} ({heads.formula}) on {heads.rows} {heads.split} rows, "
        f"scaled from 0 ({lowest:.3g}) to 100 ({max(values):.3g})",
    )
    columns = max(1, (console.width - len("layer")) // _HEAD_WIDTH)
    for start in range(0, len(heads.values[0]), columns):  # as many heads per table as fit the console
        table = Table(padding=(0, 0), show_edge=False, box=None)
        table.add_column("layer", justify="right")
        for head in range(start, min(start + columns, len(heads.values[0]))):
            table.add_column(str(head), justify="right", min_width=_HEAD_WIDTH)
        for layer, row in enumerate(heads.values):
            cells = row[start : start + columns]
            table.add_row(str(layer), *("" if value is None else _shaded((value - lowest) / span) for value in cells))
        console.print(table)
    most_important = ", ".join(
        f"{cell.layer}.{cell.head} {cell.value:.3g}" + ("" if cell.error is None else f" ± {cell.error:.1g}")
        for cell in ranked[:top]
    )
    print_line(
        console,
        f"Most important heads (layer.head value ± standard error over {heads.errors_over}): {most_important}",
    )
    if heads.stability_note():
        print_line(console, f"{escape(heads.stability_note())}.")
    print_pruning_curves(console, analysis)
    if analysis.names is not None:
        print_names(console, analysis.names)
    for warning in analysis.warnings:
        print_line(console, f"[yellow]{escape(warning)}[/]")


def print_pruning_curves(console: Console, analysis: HeadAnalysis) -> None:
    """Print the pruning curve of every method and of the random orders."""
    result = analysis.truth
    if result is None:
        return
    print_line(
        console,
        f"Pruning curves: {result.metric} by share of heads removed, on {result.rows} {result.split} rows not used for "
        f"the ranking; {result.whole:.3f} with all heads",
    )
    numbers = [score for curve in result.curves for score in (*curve.scores, curve.mean, curve.reverse or 0.0)]
    step = 2 if max(map(len, map(_score, numbers))) < 8 else 4  # so that the table fits 80 columns
    shown = range(0, len(result.shares), step)
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("", overflow="fold")  # this column is wrapped if the table is too wide
    for title in (*(f"{result.shares[index]:.0%}" for index in shown), "mean", "reversed"):
        table.add_column(title, justify="right", no_wrap=True)
    for curve in result.curves:
        cells = [_score(curve.scores[index]) for index in shown]
        reverse = "" if curve.reverse is None else _score(curve.reverse)
        table.add_row(curve.method.replace("_", " "), *cells, f"[bold]{_score(curve.mean)}[/]", reverse)
    band = result.random
    if band is not None:
        cells = [_score(band.mean_scores[index]) for index in shown]
        table.add_row(f"{band.orders} random order{'s' * (band.orders > 1)}", *cells, _score(band.mean), "")
    console.print(table)


def print_names(console: Console, names: HeadNames, top: int = 6) -> None:
    """Print how many heads have each name, and the heads with the lowest q-values of each name."""
    print_line(
        console,
        f"Names of heads by tests on {names.rows} {names.split} rows, false-discovery rate at most {names.level:.0%}: "
        f"{names.summary()}",
    )
    for name in NAMES:
        heads = [each for each in names.named if each.name == name]
        shown = [
            f"{each.layer}.{each.head}" + (f" with {each.partner[0]}.{each.partner[1]}" if each.partner else "")
            for each in heads[:top]
        ]
        if heads:
            more = f" and {len(heads) - top} more" if len(heads) > top else ""
            print_line(console, f"  {name}: {', '.join(shown)}{more}")
    together = names.unused_together
    if together is not None:
        print_line(
            console,
            f"  all {together.heads} unused heads removed together: {names.score} {-together.effect:+.4f}, "
            f"change of the output {together.change:.4f}",
        )


def print_agreement(console: Console, method: str, pairs: Sequence[RankAgreement]) -> None:
    """Print Kendall's tau between the head rankings of each pair of runs."""
    print_line(console, f"Kendall's tau between the runs' rankings by {method}, with 95 % intervals over heads")
    for pair in pairs:
        print_line(console, f"  {escape(pair.first)}, {escape(pair.second)}: {escape(pair.tau.text())}")


def _score(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _shaded(share: float) -> str:
    shade = _SHADES[min(len(_SHADES) - 1, int(share * len(_SHADES)))]
    return f"[{shade}]{100 * share:4.0f}[/]"
