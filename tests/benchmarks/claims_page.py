"""The kept measurements of `tests.benchmarks.claims`, and the part of the guide that is made from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.cells import Line
from tests.benchmarks.claims_figures import Measurements, Values, summarized, with_common_seeds
from tests.benchmarks.claims_interval import Interval
from tests.benchmarks.claims_rules import FAILS, HOLDS, OPEN
from tests.benchmarks.claims_statements import STATEMENTS, Statement
from tests.benchmarks.comparison import markdown
from tests.benchmarks.kept_results import RESULTS, replace_block
from tests.support import ROOT

FILE = RESULTS / "claims.json"
GUIDE = ROOT / "finetune/docs/claims.md"
DATA = ("trec", "sst2", "banking77")
NOT_MEASURED = "not measured"
NOTES = ("metric", "rows")  # of a line, the same in all


def keep(lines: Sequence[Line], file: Path = FILE) -> None:
    """Write the finished measurements, the last of each, one per line."""
    cells = {(line["data"], line["seed"], line["variant"]): line for line in lines}
    finished = [cells[key] for key in sorted(cells)]
    dates, commits = sorted(line["date"] for line in finished), sorted({line["commit"] for line in finished})
    head = {"dates": [dates[0], dates[-1]], "commits": commits}
    rows = [json.dumps({key: shortened(line[key]) for key in line if key not in (*NOTES, "date")}) for line in finished]
    text = json.dumps(head, indent=1)[:-2] + ',\n "measurements": [\n' + ",\n".join(rows) + "\n ]\n}\n"
    file.write_text(text, encoding="utf-8")


def shortened(value: Any) -> Any:
    """Return a value with its floats rounded to five decimals."""
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def read_kept(file: Path = FILE) -> tuple[dict[str, Any], Measurements]:
    """Return dates and commits of the kept measurements, and the measurements."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return document, Measurements(document.pop("measurements"))


def number(value: float, unit: str) -> str:
    """Return a figure in its unit: points and % with one decimal, others with two."""
    return f"{value:.2f}" if unit == "" else f"{value:.1f}"


def with_interval(interval: Interval | None, unit: str) -> str:
    """Return a figure with its interval over data sets and seeds, and its unit."""
    if interval is None:
        return NOT_MEASURED
    figure = f"{number(interval.mean, unit)} {bounds_text(interval.low, interval.high, unit) or '(no interval)'}"
    return f"{figure} {unit}".strip()


def bounds_text(low: float | None, high: float | None, unit: str) -> str:
    """Return the bounds of an interval, "" without any."""
    return "" if low is None or high is None else f"[{number(low, unit)}, {number(high, unit)}]"


def verdict(statement: Statement, interval: Interval | None) -> str:
    """Return the verdict on a statement for data sets like these."""
    return NOT_MEASURED if interval is None else statement.rule.verdict(interval)


def verdict_here(statement: Statement, interval: Interval | None) -> str:
    """Return the verdict on a statement for these data sets only, over seeds."""
    if interval is None:
        return NOT_MEASURED
    return statement.rule.verdict(Interval(interval.mean, interval.seeds_low, interval.seeds_high))


def verdict_table(measured: Measurements) -> list[list[str]]:
    """Return the table of the verdicts, with its header: those that hold first."""
    rows = []
    for index, statement in enumerate(STATEMENTS, 1):
        values = statement.figure(measured)
        interval = summarized(values)
        title = f"[{index}. {statement.title}](#{anchor(index, statement.title)})"
        verdicts = [verdict(statement, interval), verdict_here(statement, interval)]
        rows.append([title, *verdicts, with_interval(interval, statement.unit), *means(values, statement.unit)])
    order = [HOLDS, FAILS, OPEN, NOT_MEASURED]
    rows.sort(key=lambda row: (order.index(row[1]), order.index(row[2])))
    bold = [[row[0], f"**{row[1]}**", *row[2:]] for row in rows]
    return [["statement", "data sets like these", "these data sets", "figure, 95 % interval", *DATA], *bold]


def means(values: Values, unit: str) -> list[str]:
    """Return the mean of each data set over the seeds that all have."""
    common = with_common_seeds(values)
    return [number(fmean(common[data].values()), unit) if data in common else "" for data in DATA]


def anchor(index: int, title: str) -> str:
    """Return the link target of a heading."""
    kept = "".join(character for character in f"{index}. {title}".lower() if character.isalnum() or character in " -")
    return kept.replace(" ", "-")


def details(index: int, statement: Statement, measured: Measurements) -> str:
    """Return the section on one statement."""
    values = statement.figure(measured)
    interval = summarized(values)
    decided = verdict(statement, interval)
    lines = [
        f"- Measured: {statement.measured}.",
        f"- Rule: {statement.rule.text}.",
        f"- Result: {result(interval, values, statement)}",
        *([f"- What to do: {statement.advice[decided]}"] if decided in statement.advice else []),
    ]
    return f"### {index}. {statement.title}\n\n{statement.claim} ({statement.source})\n\n" + "\n".join(lines)


def result(interval: Interval | None, values: Values, statement: Statement) -> str:
    """Return the figure of a statement with both intervals and both verdicts."""
    if interval is None:
        return f"{NOT_MEASURED}."
    common = with_common_seeds(values)
    seeds = {len(of_set) for of_set in common.values()}.pop()
    text = f"{with_interval(interval, statement.unit)} over {len(common)} data sets and {seeds} seed{'s' * (seeds > 1)}"
    text += f": **{verdict(statement, interval)}**."
    over_seeds = bounds_text(interval.seeds_low, interval.seeds_high, statement.unit)
    return text + (f" For these data sets only: {over_seeds}, {verdict_here(statement, interval)}." * bool(over_seeds))


def section(document: dict[str, Any], measured: Measurements) -> str:
    """Return the generated part of the guide."""
    minutes = sum(line["cpu_seconds"] for line in measured.lines) / 60
    about = (
        f"{len(measured.lines)} measurements at commit {', '.join(document['commits'])}, {minutes:.0f} minutes of CPU "
        "time without the training of the full models."
    )
    notes = missing_text(measured)
    parts = [details(index, statement, measured) for index, statement in enumerate(STATEMENTS, 1)]
    return "\n\n".join([markdown(verdict_table(measured)), about + notes, "## Each statement", *parts])


def missing_text(measured: Measurements) -> str:
    """Return a sentence on the statements that have fewer seeds than others, "" if there are none."""
    counts = {
        index: max((len(seeds) for seeds in with_common_seeds(statement.figure(measured)).values()), default=0)
        for index, statement in enumerate(STATEMENTS, 1)
        if statement.unit  # Kendall's tau between seeds has one value for all
    }
    fewer = [str(index) for index, count in counts.items() if count < max(counts.values())]
    return f" Statements {', '.join(fewer)} have fewer seeds than the others so far." if fewer else ""


def write_guide(file: Path = FILE, guide: Path = GUIDE) -> None:
    """Replace the generated part of the guide."""
    content = section(*read_kept(file))
    guide.write_text(replace_block(guide.read_text(encoding="utf-8"), "claims", content), encoding="utf-8")
