"""The two arguments of every stage: `RunContext`, created in session.py, and `RunInputs`, created in prepare.py."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from rich.console import Console

from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.probe import Probe
from finetune.models.classifier import Classifier
from finetune.recipe.schema import Recipe
from finetune.report.terminal import print_line
from finetune.runs.results import SplitSummary
from finetune.runs.run_folder import RunFolder


@dataclass(frozen=True)
class RunContext:
    """A run in progress: its recipe, its folder, its processes, and the console of the main process."""

    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    console: Console

    def print_line(self, text: str) -> None:
        """Print one line on the main process."""
        print_line(self.console, text)


@dataclass(frozen=True)
class RunInputs:
    """The classifier of a run, its encoded splits, and a summary of each split.

    Attributes:
        held_out: the share of the training rows that is held out for validation, None if none is.
        probe: the linear model from which the classification head started; None if it started at random.
    """

    classifier: Classifier
    splits: dict[str, EncodedSplit]
    summary: dict[str, SplitSummary]
    held_out: float | None = None
    probe: Probe | None = None

    def held_out_splits(self) -> dict[str, EncodedSplit]:
        """Return the splits that are scored: all except the training rows."""
        return {name: split for name, split in self.splits.items() if name != "train"}

    def sample_texts(self, count: int = 8) -> list[tuple[str, ...]]:
        """Return the texts of the first training rows, to compare the logits of two classifiers on them."""
        columns = self.splits["train"].texts[:count]
        return list(zip(*columns.values(), strict=True))
