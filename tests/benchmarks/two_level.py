"""Simulate how often the intervals of a series of runs, and of the difference of two, contain the true value.

    python -m tests.benchmarks.two_level            # simulates, keeps the results, and updates the guide "Many runs"

A row has a difficulty, a seed a skill, and each pair an error of its own; all are normal. A seed classifies a row
correctly if

    quality + skill of the seed + difficulty of the row + own error > 0

Rows and seeds are drawn again in every repetition. A wrong row gets the label that is most like its own, or, in a part
of the rows, any other one. The true value is the mean of the metric over all seeds and all rows.

    T repetitions, S seeds, N rows, C classes
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetune.evaluation.two_level_interval import difference_interval, series_interval
from finetune.runs.results import MetricValue
from tests.benchmarks.kept_results import RESULTS, replace_block
from tests.support import ROOT

Array = NDArray[Any]
GUIDE = ROOT / "finetune/docs/many-runs.md"
FILE = RESULTS / "two-level.json"
REPETITIONS = 4000
CLASS_SHARES = np.array([0.6, 0.3, 0.1])
SHARED = 0.7  # share of the variance of an error that all seeds have in common, because some rows are difficult
OTHER_LABEL = 0.2  # share of the wrong rows whose label is drawn at random from the other ones
_BLOCK = 2_000_000  # maximum number of predictions in memory
SINGLE, DIFFERENCE = "series", "difference"


@dataclass(frozen=True)
class Setting:
    """What is simulated; `deviation` is the standard deviation of the accuracy over seeds, `gain` that of B over A."""

    target: str
    metric: str
    accuracy: float
    rows: int
    deviation: float
    seeds: int
    gain: float = 0.02

    def quality(self, gain: float = 0.0) -> tuple[float, float]:
        """Return the mean of the latent variable, and the standard deviation of the skill of the seeds."""
        expected = self.accuracy + gain
        skill = self.deviation / stats.norm.pdf(stats.norm.ppf(expected))
        return float(stats.norm.ppf(expected) * np.sqrt(1 + skill**2)), float(skill)


def right_rows(setting: Setting, repetitions: int, rng: np.random.Generator) -> tuple[Array, ...]:
    """Return which rows are right for every seed, (T, S, N), once for each series of the setting."""
    difficulty = rng.standard_normal((repetitions, 1, setting.rows), dtype=np.float32) * np.float32(np.sqrt(SHARED))
    series = []
    for gain in (0.0,) if setting.target == SINGLE else (0.0, setting.gain):
        quality, skill = setting.quality(gain)
        level = quality + skill * rng.standard_normal((repetitions, setting.seeds, 1), dtype=np.float32)
        own = rng.standard_normal((repetitions, setting.seeds, setting.rows), dtype=np.float32)
        series.append(level.astype(np.float32) + difficulty + np.float32(np.sqrt(1 - SHARED)) * own > 0)
    return tuple(series)


def influence_of_accuracy(right: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the accuracy (T, S), and what each row adds to it, (T, S, N)."""
    scores = right.mean(-1, dtype=float)
    return scores, right.astype(np.float32) - scores[..., None].astype(np.float32)


def influence_of_f1(right: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the macro F1 (T, S), and the influence of each row on it (T, S, N), with labels drawn at random."""
    repetitions, _, rows = right.shape
    labels = rng.choice(len(CLASS_SHARES), size=(repetitions, 1, rows), p=CLASS_SHARES)
    step = np.where(rng.random(right.shape, dtype=np.float32) < OTHER_LABEL, rng.integers(1, 3, right.shape), 1)
    return influence_of_labels(np.where(right, labels, (labels + step) % len(CLASS_SHARES)), labels)


def influence_of_labels(predicted: Array, labels: Array) -> tuple[Array, Array]:
    """Return the macro F1 (T, S) and its derivatives by the weights of the rows (T, S, N), for labels (T, 1, N)."""
    rows = predicted.shape[-1]
    scores, influence = np.zeros(predicted.shape[:2]), np.zeros(predicted.shape, dtype=np.float32)
    for label in range(len(CLASS_SHARES)):
        hits = ((predicted == label) & (labels == label)).astype(np.float32)
        members = (predicted == label).astype(np.float32) + (labels == label)  # predicted + actual, of each row
        total = members.sum(-1, dtype=float)
        f1 = 2 * hits.sum(-1, dtype=float) / np.maximum(total, 1)
        scores += f1 / len(CLASS_SHARES)
        slope = (rows / np.maximum(total, 1) / len(CLASS_SHARES)).astype(np.float32)[..., None]
        influence += slope * (2 * hits - f1.astype(np.float32)[..., None] * members)
    return scores, influence


INFLUENCES: dict[str, Callable[[Array, np.random.Generator], tuple[Array, Array]]] = {
    "accuracy": influence_of_accuracy,
    "f1_macro": influence_of_f1,
}


def row_covariances(influence: Array) -> Array:
    """Return the covariance of the scores over resampled rows, (T, S, S): that of the influences, over N."""
    rows = influence.shape[-1]
    covariance: Array = influence @ influence.transpose(0, 2, 1) / rows**2
    return covariance.astype(float)


def expected_score(setting: Setting, gain: float = 0.0) -> float:
    """Return the mean of the metric over all seeds, for infinitely many rows."""
    if setting.metric == "accuracy":
        return setting.accuracy + gain
    quality, skill = setting.quality(gain)
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    shares = stats.norm.cdf(quality + skill * points)[:, None]  # of right rows, for seeds of every skill
    count = len(CLASS_SHARES)
    confused = np.zeros((count, count))  # (label, predicted label of a wrong row)
    for label in range(count):
        for step, share in ((1, 1 - OTHER_LABEL / 2), (2, OTHER_LABEL / 2)):
            confused[label, (label + step) % count] = share
    predicted = shares * CLASS_SHARES + (1 - shares) * (CLASS_SHARES @ confused)
    scores = (2 * shares * CLASS_SHARES / (predicted + CLASS_SHARES)).mean(-1)
    return float(scores @ weights / weights.sum())


def contains(interval: MetricValue, value: float) -> bool:
    """Return whether an interval contains a value; without an interval it contains only its own."""
    if interval.low is None or interval.high is None:
        return interval.value == value
    return interval.low <= value <= interval.high


def normal(mean: float, variance: float, degrees: float = np.inf) -> MetricValue:
    """Return a t interval from the variance of the mean."""
    width = float(stats.t.ppf(0.975, degrees)) * variance**0.5
    return MetricValue(mean, mean - width, mean + width) if variance > 0 else MetricValue(mean)


def hillis(scores: Array, covariance: Array) -> MetricValue:
    """Return the interval of a series with the degrees of freedom of Hillis, without a transform."""
    seeds = scores.var(ddof=1) / len(scores)
    variance = seeds + max(covariance[~np.eye(len(scores), dtype=bool)].mean(), 0)
    return normal(scores.mean(), variance, variance**2 / (seeds**2 / (len(scores) - 1)) if seeds > 0 else np.inf)


def intervals_of_series(scores: Array, covariance: Array) -> dict[str, MetricValue]:
    """Return the intervals of one repetition by method: scores (S,), covariance (S, S)."""
    count = len(scores)
    return {
        "two_level": series_interval(scores, covariance, (0.0, 1.0)),
        "hillis": hillis(scores, covariance),
        "seeds_only": normal(scores.mean(), scores.var(ddof=1) / count, count - 1),
        "rows_of_one": normal(scores[0], covariance[0, 0]),
    }


def intervals_of_difference(scores: Array, covariance: Array) -> dict[str, MetricValue]:
    """Return the intervals of one repetition by method: scores (2 S,) of both series, covariance (2 S, 2 S)."""
    count = len(scores) // 2
    first, second = scores[:count], scores[count:]
    parts = [values.var(ddof=1) / count for values in (first, second)]
    welch = sum(parts) ** 2 / (sum(part**2 for part in parts) / (count - 1)) if sum(parts) > 0 else np.inf
    one = covariance[0, 0] + covariance[count, count] - 2 * covariance[0, count]
    return {
        "two_level": difference_interval((first, second), covariance),
        "seeds_only": normal(second.mean() - first.mean(), sum(parts), welch),
        "rows_of_one": normal(second[0] - first[0], one),
    }


def coverage(setting: Setting, repetitions: int, seed: int) -> dict[str, float]:
    """Return, by method, the share of repetitions whose interval contains the true value, and the mean width."""
    rng = np.random.default_rng(seed)
    single = setting.target == SINGLE
    truth = expected_score(setting) if single else expected_score(setting, setting.gain) - expected_score(setting)
    intervals = intervals_of_series if single else intervals_of_difference
    results: dict[str, list[bool]] = {}
    for scores, covariances in repeated(setting, repetitions, rng):
        for repetition in range(len(scores)):
            for method, interval in intervals(scores[repetition], covariances[repetition]).items():
                results.setdefault(method, []).append(contains(interval, truth))
    return {method: float(np.mean(inside)) for method, inside in results.items()}


def repeated(setting: Setting, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Yield scores and their covariance over rows, in blocks of repetitions: (T, S) and (T, S, S)."""
    block = max(1, _BLOCK // (setting.seeds * setting.rows))
    for start in range(0, repetitions, block):
        right = right_rows(setting, min(block, repetitions - start), rng)
        scores, influence = INFLUENCES[setting.metric](np.concatenate(right, axis=1), rng)
        yield scores, row_covariances(influence)


def settings() -> list[Setting]:
    """Return everything that is simulated."""
    series = [
        Setting(SINGLE, "accuracy", accuracy, rows, deviation, seeds)
        for seeds in (3, 5, 10)
        for accuracy in (0.7, 0.9, 0.97)
        for rows in (200, 2000)
        for deviation in (0.0, 0.003, 0.01, 0.03)
        if (accuracy, deviation) != (0.97, 0.03)  # most seeds could not be so far above
    ]
    f1 = [
        replace(setting, metric="f1_macro")
        for setting in series
        if setting.accuracy != 0.97 and setting.deviation in (0, 0.01)
    ]
    differences = [
        replace(setting, target=DIFFERENCE, metric=metric)
        for metric in INFLUENCES
        for setting in series
        if setting.deviation in (0, 0.01) and (metric == "accuracy" or setting.accuracy == 0.7)
    ]
    two_seeds = [replace(setting, seeds=2) for setting in series if setting.seeds == 3]
    return [*series, *f1, *differences, *two_seeds]


def write_results(results: list[tuple[Setting, dict[str, float]]], file: Path, repetitions: int) -> None:
    """Write the coverage of all settings, one list per setting."""
    columns = list(asdict(results[0][0]))
    methods = list(dict.fromkeys(method for _, values in results for method in values))
    head = json.dumps({"repetitions": repetitions, "columns": columns, "methods": methods}, indent=1)[:-2]
    lines = [
        json.dumps(
            [*asdict(setting).values(), *(round(values[name], 4) if name in values else None for name in methods)]
        )
        for setting, values in results
    ]
    file.write_text(head + ',\n "coverage": [\n' + ",\n".join(lines) + "\n ]\n}\n", encoding="utf-8")


def read_results(file: Path) -> tuple[int, list[tuple[Setting, dict[str, float]]]]:
    """Return the number of repetitions, and the coverage of all settings."""
    document = json.loads(file.read_text(encoding="utf-8"))
    columns, methods = document["columns"], document["methods"]
    results = []
    for line in document["coverage"]:
        values = dict(zip(methods, line[len(columns) :], strict=True))
        setting = Setting(**dict(zip(columns, line, strict=False)))
        results.append((setting, {name: value for name, value in values.items() if value is not None}))
    return document["repetitions"], results


TITLES = {
    "two_level": "finetune",
    "hillis": "Hillis 2007",
    "seeds_only": "t interval over seeds",
    "rows_of_one": "rows of one run",
}


def table(file: Path) -> str:
    """Return the Markdown table of the coverage: lowest to highest over the accuracies and numbers of rows."""
    repetitions, results = read_results(file)
    groups: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for setting, values in results:
        what = {SINGLE: "mean", DIFFERENCE: "difference"}[setting.target]
        key = (f"{what}, {setting.metric.replace('f1_macro', 'macro F1')}", setting.seeds, setting.deviation)
        groups.setdefault(key, []).append(values)
    lines = [
        f"Coverage of 95 % intervals in %, {repetitions:,} repetitions per setting: lowest to highest over accuracies "
        "of 0.7, 0.9 and 0.97 and over 200 and 2,000 rows.\n",
        f"| interval of | seeds | deviation of seeds | {' | '.join(TITLES.values())} |",
        f"|{' --- |' * (3 + len(TITLES))}",
    ]
    for (what, seeds, deviation), values in groups.items():
        cells = [_range([value[name] for value in values if name in value]) for name in TITLES]
        lines.append(f"| {what} | {seeds} | {deviation:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    """Return shares such as "94.1 to 95.8", in percent."""
    return f"{100 * min(values):.1f} to {100 * max(values):.1f}" if values else "–"


def main() -> None:
    """Simulate all settings, keep the results, and update the guide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    args = parser.parse_args()
    results = []
    for number, setting in enumerate(settings()):
        results.append((setting, coverage(setting, args.repetitions, number)))
        print(setting, " ".join(f"{name} {value:.3f}" for name, value in results[-1][1].items()), flush=True)
    write_results(results, FILE, args.repetitions)
    GUIDE.write_text(replace_block(GUIDE.read_text(encoding="utf-8"), FILE.stem, table(FILE)), encoding="utf-8")


if __name__ == "__main__":
    main()
