"""What the terminal shows of data, scores and heads.

L layers, H heads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.runs.head_results import HeadAnalysis, PruningResult, RankAgreement
from finetune.runs.results import MetricValue, SplitScores, SplitSummary, format_number

_MOST_LABELS = 8
_HEAD_WIDTH = 4  # characters of a cell of the table of heads
_SHADES = (
    "on grey11",
    "on grey19",
    "on grey27",
    "black on yellow4",
    "black on gold3",
    "black on orange1",
    "black on bright_yellow",
)


def print_data(console: Console, summary: Mapping[str, SplitSummary], where: str, max_length: int) -> None:
    """Print rows, labels and token lengths of every split."""
    print_line(console, f"Data: {escape(where)}")
    table = Table()
    for column in ("split", "rows", "labels", "tokens, median", "longest", f"cut to {max_length}", "unknown"):
        table.add_column(column, justify="left" if column in ("split", "labels") else "right", overflow="fold")
    for split, facts in summary.items():
        counts = [f"{escape(name)} {count}" for name, count in facts.label_counts.items()]
        labels = ", ".join(counts[:_MOST_LABELS]) + (
            f", {len(counts) - _MOST_LABELS} more" if len(counts) > _MOST_LABELS else ""
        )
        table.add_row(
            split,
            f"{facts.rows}",
            labels,
            f"{facts.tokens_median:g}",
            f"{facts.tokens_longest}",
            f"{facts.truncated_share:.1%}",
            f"{facts.unknown_share:.1%}",
        )
    console.print(table)
    for split, facts in summary.items():
        for note in facts.notes(split):
            print_line(console, f"[yellow]{note}[/]")


def print_line(console: Console, text: str) -> None:
    """Print one line, however long, without a break of its own."""
    console.print(text, soft_wrap=True)


def interval(cell: MetricValue) -> str:
    """Return "0.884 [0.862, 0.905]", the value alone where there is no interval, or "undefined"."""
    return f"{format_number(cell.value)} {escape(cell.interval())}".rstrip()


def print_scores(console: Console, scores: Mapping[str, SplitScores], summary: Mapping[str, SplitSummary]) -> None:
    """Print every metric of every scored split with its 95 % interval."""
    if not scores:
        return
    print_line(console, "Scores, with 95 % bootstrap intervals where these make sense")
    table = Table()
    table.add_column("metric", overflow="fold")
    for split, found in scores.items():
        table.add_column(f"{split} ({found.rows} rows)", justify="right", overflow="fold")
    for name in next(iter(scores.values())).metrics:
        table.add_row(name, *(interval(found.metrics[name]) for found in scores.values()))
    table.add_row("loss", *(f"{found.loss:.4f}" for found in scores.values()))
    console.print(table)
    for split, found in scores.items():
        for note in (summary[split].overlap_note(split), found.interval_note and f"{split}: {found.interval_note}."):
            if note:
                print_line(console, f"[yellow]{note}[/]")
        for warning in found.warnings:
            print_line(console, f"[yellow]{split}: {escape(warning)}.[/]")


def print_heads(console: Console, analysis: HeadAnalysis, most: int = 5) -> None:
    """Print the L x H table of the leading method in colour, its first heads, and how far to trust the ranking."""
    heads = analysis.methods[0]
    ranked = heads.most_important_first()
    values = [cell.value for cell in ranked]
    lowest = min(0.0, min(values))
    span = max(values) - lowest or 1.0
    print_line(
        console,
        f"Head importance by {heads.method} ({heads.formula}) on {heads.rows} {heads.split} rows; "
        f"100 is the highest, {max(values):.3g}, and 0 is {lowest:.3g}",
    )
    fitting = max(1, (console.width - len("layer")) // _HEAD_WIDTH)
    for start in range(0, len(heads.values[0]), fitting):  # as many heads side by side as there is room for
        table = Table(padding=(0, 0), show_edge=False, box=None)
        table.add_column("layer", justify="right")
        for head in range(start, min(start + fitting, len(heads.values[0]))):
            table.add_column(str(head), justify="right", min_width=_HEAD_WIDTH)
        for layer, row in enumerate(heads.values):
            cells = row[start : start + fitting]
            table.add_row(str(layer), *("" if value is None else _shaded((value - lowest) / span) for value in cells))
        console.print(table)
    first = ", ".join(
        f"{cell.layer}.{cell.head} {cell.value:.3g}" + ("" if cell.error is None else f" ± {cell.error:.1g}")
        for cell in ranked[:most]
    )
    print_line(
        console,
        f"Most important first, as the last to be removed (layer.head, ± standard error over {heads.errors_over}): "
        f"{first}",
    )
    if heads.stability_note():
        print_line(console, f"{escape(heads.stability_note())}.")
    print_pruning_curves(console, analysis)
    for warning in analysis.warnings:
        print_line(console, f"[yellow]{escape(warning)}[/]")


def print_pruning_curves(console: Console, analysis: HeadAnalysis) -> None:
    """Print the pruning curve of every method beside random orders."""
    truth = analysis.truth
    if truth is None:
        return
    print_line(
        console,
        f"{truth.metric} on {truth.rows} {truth.split} rows held apart from the ranking; all heads: {truth.whole:.3f}; "
        "by share of heads removed:",
    )
    numbers = [score for curve in truth.curves for score in (*curve.scores, curve.mean, curve.reverse or 0.0)]
    step = 2 if max(map(len, map(_score, numbers))) < 8 else 4  # what 80 columns hold
    shown = range(0, len(truth.shares), step)
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("", overflow="fold")  # this column gives way where all do not fit
    for title in (*(f"{truth.shares[place]:.0%}" for place in shown), "mean", "reversed"):
        table.add_column(title, justify="right", no_wrap=True)
    for curve in truth.curves:
        cells = [_score(curve.scores[place]) for place in shown]
        reverse = "" if curve.reverse is None else _score(curve.reverse)
        table.add_row(curve.method.replace("_", " "), *cells, f"[bold]{_score(curve.mean)}[/]", reverse)
    band = truth.random
    if band is not None:
        cells = [_score(band.mean_scores[place]) for place in shown]
        table.add_row(f"{band.orders} random order{'s' * (band.orders > 1)}", *cells, _score(band.mean), "")
    console.print(table)


def print_agreement(console: Console, method: str, pairs: Sequence[RankAgreement]) -> None:
    """Print how far runs rank their heads alike."""
    print_line(console, f"Kendall's tau between the runs' rankings by {method}, with 95 % intervals over heads")
    for pair in pairs:
        print_line(console, f"  {escape(pair.first)}, {escape(pair.second)}: {escape(pair.tau.text())}")


def print_pruning(console: Console, found: PruningResult, where: str) -> None:
    """Print what pruning removed, kept and gained."""
    count = sum(map(len, found.heads.values()))
    print_line(console, f"Cut out {count} head{'s' * (count > 1)} ({found.share:.0%}): {escape(found.chosen_by)}.")
    states = [("all heads", found.scores_before), ("pruned", found.scores_after)]
    if found.scores_healed is not None:
        states.append((f"healed for {found.heal_epochs} epoch{'s' * (found.heal_epochs > 1)}", found.scores_healed))
    table = Table()
    table.add_column("metric", overflow="fold")
    for name, _ in states:
        table.add_column(name, justify="right", overflow="fold")
    for split, metrics in found.scores_before.items():
        for metric in metrics:
            table.add_row(f"{split} {metric}", *(format_number(scores[split][metric], 4) for _, scores in states))
    if table.row_count:
        console.print(table)
    else:
        print_line(console, "No rows were held out, so nothing was scored.")
    if "within" in found.chosen_by:
        print_line(
            console, "Validation rows chose how many heads go, so their score after the cut is a little too good."
        )
    before, after = found.before, found.after
    gain = after.rows_per_second / before.rows_per_second
    print_line(
        console,
        f"Parameters {before.parameters:,} to {after.parameters:,}; {before.model_bytes / 1e6:.3g} to "
        f"{after.model_bytes / 1e6:.3g} MB on disk; {before.rows_per_second:.0f} to {after.rows_per_second:.0f} rows/s "
        f"({gain:.2f} times), measured in turns.",
    )
    print_line(
        console, f"Pruned model: {escape(where)}/model; for stock transformers, with zeroed heads: zeroed/ beside it."
    )


def _score(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _shaded(share: float) -> str:
    shade = _SHADES[min(len(_SHADES) - 1, int(share * len(_SHADES)))]
    return f"[{shade}]{100 * share:4.0f}[/]"
