"""The results of a series, one run per seed, as stored in its `series.json`.

S seeds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.errors import DataError
from finetune.runs.head_results import RankAgreement, TauValue
from finetune.runs.json_files import damaged_file, read_json
from finetune.runs.results import MetricValue
from finetune.runs.run_folder import RunFolder, SeriesFolder

Status = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class MemberResult:
    """One run of a series.

    Attributes:
        status: "unfinished" if the run was not started, was interrupted, or is in progress.
        error: why the run failed.
        seconds: duration of all starts of the run, including preparation, scoring and head analysis.
        train_seconds: duration of its training steps alone.
        scores: by split and metric, also `loss`; None where a metric is undefined.
    """

    seed: int
    status: Status = "unfinished"
    error: str = ""
    seconds: float = 0.0
    train_seconds: float = 0.0
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedStatistics:
    """A metric over the finished runs of a series.

    Attributes:
        mean: with the 95 % interval that holds both the seeds and the rows, see evaluation/two_level_interval.py.
        standard_deviation: over the seeds; None for a single run.
    """

    mean: MetricValue
    standard_deviation: float | None


@dataclass(frozen=True)
class HeadAgreement:
    """Agreement of the head rankings of different seeds.

    Attributes:
        method: the ranking method.
        pairs: Kendall's tau of each pair of runs.
        tau: mean, minimum and maximum over the pairs.
        rows_tau: the same ranking from other rows, with the same seed: mean over the runs of `HeadScores.stability`;
            None if it was not measured.
        rows_note: which rows `rows_tau` compares.
    """

    method: str
    pairs: list[RankAgreement]
    tau: TauValue
    rows_tau: float | None = None
    rows_note: str = ""


@dataclass(frozen=True)
class SeriesResult:
    """The results of a series.

    Attributes:
        metric: the metric that selects the best checkpoint of each run, and the best run.
        members: one per seed, in the order of the recipe.
        rows: number of rows by split.
        splits: by split and metric, over the finished runs.
        interval_note: what the intervals hold, and their source.
        chosen_seed: the run whose model is the model of the series; None if no run is finished.
        choice: why it was chosen.
        heads: agreement of the head rankings; None for fewer than two runs with the same head analysis.
        data_checksums: of each data file, and of rows in the recipe, by recipe key; {} in series of earlier versions.
    """

    metric: str
    members: list[MemberResult]
    rows: dict[str, int] = field(default_factory=dict)
    splits: dict[str, dict[str, SeedStatistics]] = field(default_factory=dict)
    interval_note: str = ""
    chosen_seed: int | None = None
    choice: str = ""
    heads: HeadAgreement | None = None
    data_checksums: dict[str, str] = field(default_factory=dict)

    def with_status(self, status: Status) -> list[MemberResult]:
        """Return the runs with this status."""
        return [member for member in self.members if member.status == status]

    def member(self, seed: int) -> MemberResult:
        """Return the run with this seed."""
        return next(member for member in self.members if member.seed == seed)

    def seconds(self) -> float:
        """Return the duration of all runs together."""
        return sum(member.seconds for member in self.members)

    def values(self, split: str, metric: str) -> dict[int, float | None]:
        """Return the scores of the finished runs by seed."""
        return {member.seed: member.scores.get(split, {}).get(metric) for member in self.with_status("finished")}


def is_series(path: Path) -> bool:
    """Return whether a folder is that of a series."""
    return SeriesFolder(path).results.is_file()


def read_series(path: Path) -> SeriesResult:
    """Return the results of the series in a folder.

    Raises:
        DataError: the folder contains no series, or its series.json is damaged.
    """
    folder = SeriesFolder(path)
    if not is_series(path):
        raise DataError(f"{path} is not a series (no {folder.results.name}); name the folder that `train` wrote")
    result = read_json(folder.results, SeriesResult)
    if problem := _problem(result):
        raise damaged_file(folder.results, problem)
    return result


def chosen_run(path: Path) -> RunFolder:
    """Return the run whose model is that of the series in a folder.

    Raises:
        DataError: the folder contains no series, its series.json is damaged, or no run has finished.
    """
    seed = read_series(path).chosen_seed
    if seed is None:
        raise DataError(f"no run of the series {path} has finished; finish it (checkpoint.resume_from_checkpoint=auto)")
    return SeriesFolder(path).member(seed)


def _problem(result: SeriesResult) -> str:
    """Return what is inconsistent in the results, or ""."""
    seeds = [member.seed for member in result.members]
    finished = {member.seed: member.scores for member in result.with_status("finished")}
    if len(set(seeds)) < max(1, len(seeds)):
        return "members: a seed is missing, or occurs twice"
    if result.chosen_seed is not None and result.chosen_seed not in finished:
        return f"chosen_seed: {result.chosen_seed} is not a finished run"
    for seed, scores in finished.items():
        if not _has_metrics(scores, result.splits):
            return f"members: the scores of seed {seed} are not those of the series"
    return ""


def _has_metrics(scores: Mapping[str, Mapping[str, object]], splits: Mapping[str, Mapping[str, object]]) -> bool:
    return all(split in scores and metrics.keys() <= scores[split].keys() for split, metrics in splits.items())
