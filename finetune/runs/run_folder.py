"""The paths of all files in a run folder, and in the folder of a series of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finetune.runs.completion_marker import COMPLETE_MARKER


class RunFolder:
    """The files and folders of one run; no other module contains their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.rows = path / "rows"  # rows from Python
        self.data_quality = path / "data_quality.json"
        self.history = path / "history.jsonl"
        self.checkpoints = path / "checkpoints"
        self.trackers = path / "trackers"
        self.model = path / "model"
        self.merged = path / "merged"
        self.pruned = path / "pruned"
        self.onnx = path / "onnx"
        self.onnx_int8 = path / "onnx-int8"
        self.ranks = path / "ranks.json"  # of earlier versions, with rank_pattern: by_importance
        self.training = path / "training.json"
        self.fitted_outputs = path / "outputs.json"
        self.scores = path / "scores.json"
        self.baselines = path / "baselines.json"
        self.predictions = path / "predictions.parquet"
        self.label_errors = path / "label_errors.csv"
        self.heads = path / "heads.json"
        self.heads_failure = path / "heads_failure.json"
        self.explanations = path / "explanations.parquet"
        self.report = path / "report.html"
        self.card = path / "README.md"

    def outputs(self) -> list[Path]:
        """Return every path that a run may write to."""
        return [
            *(self.recipe, self.environment, self.data, self.data_quality, self.rows, self.history),
            *(self.checkpoints, self.trackers),
            *(self.model, self.merged, self.pruned, self.onnx, self.onnx_int8, self.ranks, self.training),
            *(
                self.fitted_outputs,
                self.scores,
                self.baselines,
                self.predictions,
                self.label_errors,
                self.heads,
                self.heads_failure,
                self.explanations,
            ),
            *(self.report, self.card),
        ]

    def has_model(self) -> bool:
        """Return whether the folder contains a trained model."""
        return self.model.is_dir()

    def has_checkpoint(self) -> bool:
        """Return whether the folder contains a complete checkpoint."""
        return any(self.checkpoints.glob(f"*/{COMPLETE_MARKER}"))


class SeriesFolder:
    """The files of a series, and the run folder of each seed."""

    def __init__(self, path: Path, seeds: Iterable[int] = ()) -> None:
        self.path = path
        self.seeds = list(seeds)
        self.recipe = path / "recipe.yaml"
        self.rows = path / "rows"  # rows from Python
        self.results = path / "series.json"
        self.model = path / "model"
        self.report = path / "report.html"
        self.card = path / "README.md"

    def member(self, seed: int) -> RunFolder:
        """Return the run folder of a seed."""
        return RunFolder(self.path / f"seed-{seed}")

    def lock(self, seed: int) -> Path:
        """Return the lock file that the process training this seed holds."""
        return self.path / f".seed-{seed}.lock"

    def outputs(self) -> list[Path]:
        """Return every path that the series may write to; the results come last, because they list the seeds."""
        members = [self.member(seed).path for seed in self.seeds]
        return [*members, self.model, self.report, self.card, self.rows, self.recipe, self.results]

    def has_model(self) -> bool:
        """Return whether a run has a trained model."""
        return any(self.member(seed).has_model() for seed in self.seeds)

    def has_checkpoint(self) -> bool:
        """Return whether a run has a complete checkpoint."""
        return any(self.member(seed).has_checkpoint() for seed in self.seeds)
