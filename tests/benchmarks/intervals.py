"""Simulate how often the 95 % intervals of all metrics contain the value of the population.

    python -m tests.benchmarks.intervals            # simulates, keeps the results, and updates the guide "Runs"

Every data set is a sample of a population of its own (populations.py). The value that an interval should contain is
that of the metric on infinitely many rows; macro F1 is over the classes that occur in the sample, as its value is.

    N rows, C classes
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from finetune.evaluation.intervals import classification_intervals
from finetune.evaluation.metric_formulas import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Counts, f1, precision, recall
from finetune.evaluation.paired_differences import paired_differences
from finetune.evaluation.regression_intervals import regression_intervals
from finetune.runs.results import ClassScores, MetricValue
from tests.benchmarks.kept_results import RESULTS, replace_block
from tests.benchmarks.populations import (
    Generator,
    Setting,
    confusion_shares,
    draw_error,
    draw_values,
    label_sets,
    pair,
)
from tests.support import ROOT

GUIDE = ROOT / "finetune/docs/runs.md"
FILE = RESULTS / "intervals.json"
REPETITIONS = 400
Measured = Iterator[tuple[str, MetricValue, float]]  # name of the metric, its interval, and the value of the population


@dataclass
class Coverage:
    """How often the intervals of a metric contain the value of the population."""

    inside: int = 0
    too_low: int = 0
    too_high: int = 0
    none: int = 0
    widths: list[float] = field(default_factory=list)

    def add(self, interval: MetricValue, value: float) -> None:
        """Count an interval."""
        if interval.low is None or interval.high is None:
            self.none += 1
            return
        self.too_low += interval.high < value - 1e-9
        self.too_high += interval.low > value + 1e-9
        self.inside += interval.low - 1e-9 <= value <= interval.high + 1e-9
        self.widths.append(interval.high - interval.low)

    def shares(self) -> tuple[float, float, float, float, float]:
        """Return coverage, share of intervals that are too low, too high, mean width, share without an interval."""
        shown = max(1, len(self.widths))
        width = float(np.mean(self.widths)) if self.widths else 0.0
        shares = (self.inside / shown, self.too_low / shown, self.too_high / shown, width)
        return *shares, self.none / max(1, self.none + len(self.widths))


def of_classes(per_class: Sequence[ClassScores], total: Counts) -> Measured:
    """Yield precision, recall and F1 of each class, with those of the population."""
    for name, formula in (("precision", precision), ("recall", recall), ("f1", f1)):
        for row, value in zip(per_class, formula(total), strict=True):
            yield f"{name} per class", getattr(row, name), float(value)


def single_label(setting: Setting, rng: Generator) -> Measured:
    """Yield the intervals of a sample of rows with one label."""
    shares = confusion_shares(setting, rng, draw_error(setting, rng))
    count = setting.classes
    cells = np.repeat(np.arange(count**2), rng.multinomial(setting.rows, shares.ravel() / shares.sum()))
    actual, predicted = np.divmod(cells, count)
    metrics, per_class = classification_intervals(predicted, actual, [str(label) for label in range(count)])
    total = Counts(np.diag(shares), shares.sum(0), shares.sum(1), np.trace(shares), 1)
    occurs = np.isin(np.arange(count), np.concatenate([actual, predicted]))
    for name, formula in SINGLE_LABEL.items():
        value = f1(total)[occurs].mean() if name == "f1_macro" else formula(total)
        yield name, metrics[name], float(value)
    yield from of_classes(per_class, total)


def multi_label(setting: Setting, rng: Generator) -> Measured:
    """Yield the intervals of a sample of rows with several labels."""
    population = label_sets(setting, rng)
    predicted, actual = population.draw(setting.rows, rng)
    names = [str(label) for label in range(setting.classes)]
    metrics, per_class = classification_intervals(predicted, actual, names)
    total = Counts(*population.hits_predicted(), population.prevalence, np.array(population.subset_accuracy()), 1)
    occurs = (actual + predicted).any(0)
    for name, formula in MULTI_LABEL.items():
        value = (f1(total) * occurs).mean() if name == "f1_macro" else formula(total)
        yield name, metrics[name], float(value)
    yield from of_classes(per_class, total)


def regression(setting: Setting, truth: dict[str, float], rng: Generator) -> Measured:
    """Yield the intervals of a sample of values."""
    metrics = regression_intervals(*draw_values(setting, rng, setting.rows))
    for name, value in truth.items():
        yield name, metrics[name], value


def difference(setting: Setting, rng: Generator) -> Measured:
    """Yield the intervals of the difference of two classifiers on the same rows."""
    population, count = pair(setting, rng), setting.classes
    labels, predictions = population.draw(setting.rows, rng)
    intervals = paired_differences(predictions, labels, ["accuracy", "f1_macro"], num_classes=count)
    values = []
    for shares, predicted in zip((population.first, population.second), predictions, strict=True):
        total = Counts(np.diag(shares), shares.sum(0), shares.sum(1), np.trace(shares), 1)
        occurs = np.isin(np.arange(count), np.concatenate([labels, predicted]))
        values.append((float(np.trace(shares)), float(f1(total)[occurs].mean())))
    for index, (name, interval) in enumerate(intervals.items()):
        yield f"difference in {name}", interval, values[1][index] - values[0][index]


def simulation(setting: Setting) -> Callable[[Generator], Measured]:
    """Return a function that yields the intervals of one sample."""
    if setting.task != "regression":
        tasks = {"single-label": single_label, "multi-label": multi_label, "difference": difference}
        return partial(tasks[setting.task], setting)
    values = draw_values(setting, np.random.default_rng(1), 1_000_000)
    return partial(regression, setting, {name: metric(*values) for name, metric in REGRESSION.items()})


def coverage(setting: Setting, repetitions: int, seed: int) -> dict[str, Coverage]:
    """Return how often the intervals of each metric contain the value of the population."""
    rng, sample = np.random.default_rng(seed), simulation(setting)
    results: dict[str, Coverage] = {}
    for _ in range(repetitions):
        for name, interval, value in sample(rng):
            results.setdefault(name, Coverage()).add(interval, value)
    return results


def settings() -> list[Setting]:
    """Return everything that is simulated."""
    sizes, errors = ("balanced", "long tail", "95:5"), ("spread", "concentrated")
    cells = [
        (classes, rows, accuracy)
        for classes in (2, 6, 20, 77, 150)
        for rows in (50, 200, 1000, 5000)
        for accuracy in (0.7, 0.9, 0.97, 0.995)
        if rows > classes / 2
    ]
    # Every combination once, with one kind of class sizes after another; 20 and 77 classes also of equal sizes.
    kinds = [(cell, number % 3) for number, cell in enumerate(cells)]
    kinds += [(cell, 0) for cell, kind in kinds if kind and cell[0] in (20, 77) and cell[2] in (0.9, 0.97)]
    single = [
        Setting("single-label", *cell, sizes[kind if cell[0] > 2 else 2 * (kind == 2)], errors[number % 2])
        for number, (cell, kind) in enumerate(kinds)
    ]
    sets = [
        Setting("multi-label", labels, rows, accuracy, sizes[number % 2], "spread")
        for number, (labels, rows, accuracy) in enumerate(
            (labels, rows, accuracy) for labels in (5, 62) for rows in (50, 200, 1000) for accuracy in (0.7, 0.9, 0.97)
        )
    ]
    values = [
        Setting("regression", 0, rows, 0.0, "", distribution)
        for distribution in ("normal", "ratings", "Laplace", "t with 5 degrees of freedom")
        for rows in (50, 200, 1000)
    ]
    differences = [
        Setting("difference", classes, rows, accuracy, "long tail" if classes == 6 else "balanced", "spread")
        for classes, rows in ((2, 50), (2, 200), (6, 200), (6, 1000), (77, 1000))
        for accuracy in (0.7, 0.9, 0.97)
    ]
    return [*single, *sets, *values, *differences]


Row = tuple[Setting, str, tuple[float, ...]]  # a setting, a metric, and its coverage as `Coverage.shares` returns it


def write_results(rows: Sequence[Row], file: Path, repetitions: int) -> None:
    """Write the coverage of all settings, one list per setting and metric."""
    columns = [*asdict(rows[0][0]), "metric", "coverage", "too_low", "too_high", "width", "none"]
    head = json.dumps({"repetitions": repetitions, "columns": columns}, indent=1)[:-2]
    lines = [
        json.dumps([*asdict(setting).values(), metric, *(round(value, 4) for value in values)])
        for setting, metric, values in rows
    ]
    file.write_text(head + ',\n "results": [\n' + ",\n".join(lines) + "\n ]\n}\n", encoding="utf-8")


def read_results(file: Path) -> tuple[int, list[Row]]:
    """Return the number of repetitions, and the coverage of all settings."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return document["repetitions"], [(Setting(*line[:6]), line[6], tuple(line[7:])) for line in document["results"]]


def shown(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return, by metric, the settings of which at least half of the data sets have an interval."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = row[1] if row[0].task != "multi-label" else f"{row[1]}, label sets"
        groups.setdefault(name, [])
        if row[2][4] <= 0.5:
            groups[name].append(row)
    return groups


def table(file: Path) -> str:
    """Return the Markdown table of the coverage, by metric, over all settings that have intervals."""
    repetitions, rows = read_results(file)
    lines = [
        f"Coverage of 95 % intervals in %, {repetitions:,} data sets per setting, over the settings in which at least "
        "half of them have an interval.\n",
        "| interval of | settings | lowest | median | highest | within 93 to 97 | too low | too high |",
        f"|{' --- |' * 8}",
    ]
    for name, group in shown(rows).items():
        if not group:
            continue
        covered = np.array([values[0] for _, _, values in group])
        within = np.mean((covered >= 0.93) & (covered <= 0.97))
        low, high = (100 * np.mean([values[index] for _, _, values in group]) for index in (1, 2))
        cells = [f"{100 * value:.1f}" for value in (covered.min(), np.median(covered), covered.max())]
        lines.append(
            f"| {name.replace('_', ' ')} | {len(group)} | {' | '.join(cells)} | {within:.0%} | {low:.1f} | {high:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Simulate all settings, keep the results, and update the guide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    args = parser.parse_args()
    rows: list[Row] = []
    for number, setting in enumerate(settings()):
        print(setting, flush=True)
        for metric, result in coverage(setting, args.repetitions, number).items():
            rows.append((setting, metric, result.shares()))
            covered, low, high, width, none = rows[-1][2]
            print(
                f"  {metric:28} {100 * covered:5.1f} % (too low {100 * low:.1f}, too high {100 * high:.1f}), width "
                f"{width:.3f}, without interval {none:.0%}",
                flush=True,
            )
    write_results(rows, FILE, args.repetitions)
    GUIDE.write_text(replace_block(GUIDE.read_text(encoding="utf-8"), FILE.stem, table(FILE)), encoding="utf-8")


if __name__ == "__main__":
    main()
