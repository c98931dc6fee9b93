"""Texts of a comparison that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Callable

from finetune.runs.comparison import ClassDifference, RunsComparison, RunSummary, SplitDifference
from finetune.runs.results import MetricValue

_MAX_CLASSES = 10


def difference_text(difference: MetricValue, digits: int = 4) -> str:
    """Return "+0.0312 [+0.0102, +0.0522]", the difference alone if there is no interval, or "undefined"."""
    if difference.value is None:
        return "undefined"
    value, low, high = (
        "" if number is None else f"{number:+.{digits}f}"
        for number in (difference.value, difference.low, difference.high)
    )
    return f"{value} [{low}, {high}]" if low and high else value


def result_text(result: SplitDifference, comparisons: int) -> str:
    """Return the rows that changed sides and the test, such as "51 rows gained, 95 lost; McNemar's exact test ...".

    Args:
        comparisons: number of comparisons on the split; with several, the corrected p-value is given too.
    """
    parts = [] if result.gained is None else [f"{result.gained} rows gained, {result.lost} lost"]
    if result.test is None:
        parts.append(f"no test, because {'there are too few rows' if result.notes else 'the scores do not vary'}")
    else:
        test = result.test
        corrected = f", corrected for {comparisons} comparisons {_p_text(test.p_holm)}" if comparisons > 1 else ""
        parts.append(f"{test.name} of {test.subject}: {_p_text(test.p_value)}{corrected}")
    return "; ".join(parts)


def _p_text(p_value: float) -> str:
    """Return "p = 0.031", or "p < 0.0001"."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def largest_class_differences(result: SplitDifference) -> list[ClassDifference]:
    """Return at most ten classes, those whose F1 differs most first."""
    return sorted(result.classes, key=lambda row: -abs(row.f1.value or 0))[:_MAX_CLASSES]


# Title -> the value of a run as text.
_COSTS: dict[str, Callable[[RunSummary], str]] = {
    "seeds": lambda run: ", ".join(map(str, run.seeds)),
    "trained parameters": lambda run: f"{run.trainable_parameters:,.0f}",
    "all parameters": lambda run: f"{run.total_parameters:,.0f}",
    "training seconds": lambda run: f"{run.train_seconds:.1f}",
    "training rows/s": lambda run: f"{run.train_samples_per_second:.1f}",
    "evaluation rows/s": lambda run: f"{run.eval_samples_per_second:.1f}",
    "peak memory, MB": lambda run: f"{run.peak_memory_mb:,.0f}",
    "forward FLOPs/row": lambda run: "–" if run.flops_per_row is None else f"{run.flops_per_row:.3g}",
    "device": lambda run: run.device,
    "heads needed": lambda run: _heads_text(run),
}


def cost_rows(comparison: RunsComparison) -> list[list[str]]:
    """Return what each run costs, and the heads that it needs within one point: a title, and a value per run."""
    rows = [[title, *(value(run) for run in comparison.runs)] for title, value in _COSTS.items()]
    return [row for row in rows if set(row[1:]) != {"–"}]


def _heads_text(run: RunSummary) -> str:
    """Return "22 of 72", or a dash without a pruning curve."""
    return "–" if run.heads_needed is None else f"{run.heads_needed:g} of {run.heads}"
