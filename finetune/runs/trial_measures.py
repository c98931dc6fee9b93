"""What the runs of a sweep's trials measured: scores, overfitting, parameters, FLOPs, time, removable heads.

These values describe the trials; none of them is used to choose the best one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.runs.json_files import read_json
from finetune.runs.removable_heads import removable_heads
from finetune.runs.results import MetricValue, TrainingResult, format_significant
from finetune.runs.run_files import read_heads, read_scores
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import is_series, read_series

REMOVABLE_WITHIN = 0.01  # the loss of score at which heads count as removable
_HELD_OUT = ("validation", "test")
_WHOLE_NUMBERS = ("parameters", "FLOPs per row")


@dataclass(frozen=True)
class Measure:
    """One value of a trial; with several seeds, the mean over the seeds with its 95 % interval.

    Attributes:
        decimals: number of decimals; None shows three significant digits. Numbers have thousands separators.
    """

    title: str
    value: MetricValue
    decimals: int | None = None

    def text(self) -> str:
        """Return "0.812 [0.790, 0.834]", "1,230,000", or "undefined"."""
        cell = self.value
        if cell.value is None:
            return "undefined"
        numbers = [self._number(number) for number in (cell.value, cell.low, cell.high) if number is not None]
        return numbers[0] if len(numbers) < 3 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"

    def _number(self, value: float) -> str:
        return format_significant(value) if self.decimals is None else f"{value:,.{self.decimals}f}"


def read_measures(path: Path, metric: str) -> list[Measure]:
    """Return what a finished run or series measured; a value that one of its runs does not have is left out.

    Args:
        metric: the metric whose scores are returned.
    """
    if not is_series(path):
        runs, scores = [RunFolder(path)], _run_scores(RunFolder(path), metric)
    else:
        series, folder = read_series(path), SeriesFolder(path)
        runs = [folder.member(member.seed) for member in series.with_status("finished")]
        scores = {split: metrics[metric].mean for split, metrics in series.splits.items() if metric in metrics}
    shown = metric.replace("_", " ")
    measures = [Measure(f"{split} {shown}", scores[split], 3) for split in _HELD_OUT if split in scores]
    held_out = next((split for split in reversed(_HELD_OUT) if split in scores), None)
    if "train" in scores and held_out:
        gaps = [_gap(_run_scores(run, metric), held_out) for run in runs]
        measures.append(Measure(f"train minus {held_out} {shown}", mean_over_seeds(gaps), 3))
    for title, read in _MEASURES.items():
        values = [read(run) for run in runs if run.training.is_file()]
        if values and None not in values:
            decimals = 0 if title in _WHOLE_NUMBERS else 1 if title.startswith("heads") else None
            measures.append(Measure(title, mean_over_seeds([value for value in values if value is not None]), decimals))
    return measures


def mean_over_seeds(values: Sequence[float | None]) -> MetricValue:
    """Return the mean with its 95 % t interval over the seeds; no interval for one value, or if all are equal."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return MetricValue(None)
    mean = math.fsum(known) / len(known)
    if max(known) == min(known):
        return MetricValue(mean)
    from scipy import stats  # slow to import

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    width = float(stats.t.ppf(0.975, len(known) - 1)) * deviation / math.sqrt(len(known))
    return MetricValue(mean, mean - width, mean + width)


def _run_scores(run: RunFolder, metric: str) -> dict[str, MetricValue]:
    """Return the score of every split that has one; {} if the run has no scores."""
    if not run.scores.is_file():
        return {}
    scores = read_scores(run)
    if metric == "loss":
        return {split: MetricValue(result.loss) for split, result in scores.items()}
    return {split: result.metrics[metric] for split, result in scores.items() if metric in result.metrics}


def _gap(scores: Mapping[str, MetricValue], held_out: str) -> float | None:
    """Return the score on the training rows minus that on other rows; None if one of them is undefined."""
    train, other = (scores.get(split, MetricValue(None)).value for split in ("train", held_out))
    return None if train is None or other is None else train - other


def _training(run: RunFolder) -> TrainingResult:
    return read_json(run.training, TrainingResult)


def _removable(run: RunFolder) -> float | None:
    found = removable_heads(read_heads(run), REMOVABLE_WITHIN) if run.heads.is_file() else None
    return None if found is None else float(found.count)


_MEASURES: Mapping[str, Callable[[RunFolder], float | None]] = {
    "parameters": lambda run: _training(run).total_parameters,
    "FLOPs per row": lambda run: _training(run).flops_per_row,
    "seconds per epoch": lambda run: _training(run).seconds_per_epoch,
    "heads removable within 0.01": _removable,
}
