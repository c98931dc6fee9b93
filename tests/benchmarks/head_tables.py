"""The kept results of the comparison of head orders, and their tables in the head-analysis guide.

tests/benchmarks/results/heads-GRID.json has one short list per run and method.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.cells import Line
from tests.benchmarks.comparison import Estimate, estimate, markdown, print_table
from tests.benchmarks.kept_results import RESULTS, distinct, replace_block
from tests.support import ROOT

GUIDE = ROOT / "finetune/docs/head-analysis.md"
BASELINE, DEFAULT, GOAL = "gradient_layer_norm", "learned_order", 0.02
CHOSE = ("trec", "sst2", "banking77")  # their validation rows chose the default method
COLUMNS = ("run", "method", "split", "rows", "metric", "whole", "scores", "kl", "cpu_seconds")
Scores = dict[str, dict[str, float]]  # by method, then run


def kept_file(grid: str) -> Path:
    """Return the file of the kept results of a grid."""
    return RESULTS / f"heads-{grid}.json"


def keep_lines(lines: Sequence[Line], grid: str) -> None:
    """Write the results of a grid to its file, one list per run and method.

    Raises:
        ValueError: a run and method that the file has is missing.
    """
    missing = {_key(line) for line in read_kept_lines(grid)} - {_key(line) for line in lines}
    if missing:
        raise ValueError(f"kept results are missing in the log: {sorted(missing)}; remove them from {kept_file(grid)}")
    shares = distinct([line["shares"] for line in lines])
    head = json.dumps({"shares": shares, "columns": list(COLUMNS)}, indent=1)[:-2]
    rows = [json.dumps([_rounded(line[column]) for column in COLUMNS]) for line in sorted(lines, key=_key)]
    kept_file(grid).write_text(head + ',\n "orders": [\n' + ",\n".join(rows) + "\n ]\n}\n", encoding="utf-8")


def read_kept_lines(grid: str) -> list[Line]:
    """Return the kept results of a grid."""
    document = json.loads(kept_file(grid).read_text(encoding="utf-8"))
    return [dict(zip(document["columns"], row, strict=True)) for row in document["orders"]]


def _key(line: Line) -> tuple[str, str]:
    return line["run"], line["method"]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def group_of(run: str) -> str:
    """Return the data set, encoder and kind of training of a run: its name without the seed."""
    return run.rpartition("-")[0].removesuffix("-full")


def means(lines: Sequence[Line], column: str) -> Scores:
    """Return the mean of the curves by method, then run."""
    result: Scores = {}
    for line in lines:
        result.setdefault(line["method"], {})[line["run"]] = statistics.fmean(line[column])
    return result


def differences(scores: Scores, method: str, baseline: str = BASELINE) -> dict[str, list[float]]:
    """Return the differences from the baseline, one per run that both have, by group."""
    groups: dict[str, list[float]] = {}
    for run in sorted(scores[method].keys() & scores.get(baseline, {}).keys()):
        groups.setdefault(group_of(run), []).append(scores[method][run] - scores[baseline][run])
    return groups


def over_groups(groups: dict[str, list[float]]) -> Estimate:
    """Return the mean over groups of the mean over runs, with the 95 % t interval of the group means."""
    return estimate([statistics.fmean(values) for values in groups.values()])


def signed(value: Estimate, digits: int = 3) -> str:
    """Return a mean with the half width of its interval."""
    half = "" if value.half_width is None else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:+.{digits}f}{half}"


def comparison(lines: Sequence[Line]) -> list[list[str]]:
    """Return the table of all methods, the best first: differences from the baseline, and the mean per group."""
    metric, distance = means(lines, "scores"), means(lines, "kl")
    groups = sorted({group_of(line["run"]) for line in lines})
    header = ["order", "metric", "KL", "runs", "over all runs", *groups]
    rows = []
    for method in sorted(metric, key=lambda name: -over_groups(differences(metric, name)).mean):
        by_group = differences(metric, method)
        runs = [value for values in by_group.values() for value in values]
        gain = [signed(over_groups(by_group)), signed(over_groups(differences(distance, method)))]
        if method == BASELINE:
            gain = ["0", "0"]
        cells = [[value for run, value in metric[method].items() if group_of(run) == group] for group in groups]
        texts = [f"{statistics.fmean(values):.3f}" if values else "" for values in cells]
        over_runs = "" if method == BASELINE else signed(estimate(runs))
        rows.append([f"`{method}`" if " " not in method else method, *gain, str(len(runs)), over_runs, *texts])
    whole = {line["run"]: line["whole"] for line in lines if line["whole"] is not None}
    if whole:
        cells = [[value for run, value in whole.items() if group_of(run) == group] for group in groups]
        rows.append(["no head removed", "", "", "", "", *(f"{statistics.fmean(values):.3f}" for values in cells)])
    return [header, *rows]


def summary(lines: Sequence[Line]) -> str:
    """Return sentences about the gain of the default method, on all data sets and on those that chose nothing."""
    scores = means(lines, "scores")
    every = differences(scores, DEFAULT)
    parts = {
        "All": every,
        "Data sets and encoders that chose nothing": {group: every[group] for group in every if group not in CHOSE},
        "Rows of TREC, SST-2 and Banking77 that chose nothing": {
            group: every[group] for group in every if group in CHOSE
        },
    }
    gains = [f"- {name} ({_count(groups)}): {signed(over_groups(groups))}" for name, groups in parts.items() if groups]
    reached = over_groups(every).mean >= GOAL
    verdict = f"The goal was +{GOAL}: {'reached' if reached else 'missed'}."
    return "\n".join([f"Gain of `{DEFAULT}` over `{BASELINE}` in the mean of the curve:", "", *gains, "", verdict])


def _count(groups: dict[str, list[float]]) -> str:
    runs = sum(len(values) for values in groups.values())
    return f"{len(groups)} data sets and encoders, {runs} models"


def print_tables(lines: Sequence[Line]) -> None:
    """Print the comparison."""
    print_table(comparison(lines), width=250)


def write_tables(grid: str) -> None:
    """Replace the table of a grid in the guide by that of its kept results."""
    GUIDE.write_text(replace_block(GUIDE.read_text(encoding="utf-8"), f"heads-{grid}", table(grid)), encoding="utf-8")


def table(grid: str) -> str:
    """Return the table of the kept results of a grid, in Markdown, and for the confirming grid its summary."""
    lines = read_kept_lines(grid)
    return markdown(comparison(lines)) + (f"\n\n{summary(lines)}" if grid == "confirm" else "")
