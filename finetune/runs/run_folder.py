"""The paths of all files in a run folder."""

from __future__ import annotations

from pathlib import Path


class RunFolder:
    """The files and folders of one run; no other module contains their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
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
        self.scores = path / "scores.json"
        self.baselines = path / "baselines.json"
        self.predictions = path / "predictions.parquet"
        self.heads = path / "heads.json"
        self.heads_failure = path / "heads_failure.json"
        self.report = path / "report.html"
        self.card = path / "README.md"

    def outputs(self) -> list[Path]:
        """Return every path that a run may write to."""
        return [
            *(self.recipe, self.environment, self.data, self.history, self.checkpoints, self.trackers),
            *(self.model, self.merged, self.pruned, self.onnx, self.onnx_int8, self.ranks, self.training),
            *(self.scores, self.baselines, self.predictions, self.heads, self.heads_failure, self.report, self.card),
        ]
