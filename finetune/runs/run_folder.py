"""Where each file of a run lies. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The names in a run folder; nobody else spells them."""

    path: Path

    recipe = property(lambda self: self.path / "recipe.yaml")
    environment = property(lambda self: self.path / "environment.json")
    data = property(lambda self: self.path / "data.json")
    history = property(lambda self: self.path / "history.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    trackers = property(lambda self: self.path / "trackers")
    model = property(lambda self: self.path / "model")
    merged = property(lambda self: self.path / "merged")
    pruned = property(lambda self: self.path / "pruned")
    ranks = property(lambda self: self.path / "ranks.json")  # of earlier versions, with rank_pattern: by_importance
    training = property(lambda self: self.path / "training.json")
    scores = property(lambda self: self.path / "scores.json")
    predictions = property(lambda self: self.path / "predictions.parquet")
    heads = property(lambda self: self.path / "heads.json")
    heads_failure = property(lambda self: self.path / "heads_failure.json")
    report = property(lambda self: self.path / "report.html")
    card = property(lambda self: self.path / "README.md")

    def written(self) -> list[Path]:
        """Return every place a run writes to."""
        return [getattr(self, name) for name, value in vars(type(self)).items() if isinstance(value, property)]
