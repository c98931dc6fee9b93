"""The two arguments of every stage: `RunContext`, created in session.py, and `RunInputs`, created in prepare.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accelerate import Accelerator
from rich.console import Console

from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.probe import Probe
from finetune.models.classifier import Classifier
from finetune.recipe.schema import Recipe
from finetune.report.terminal import print_line
from finetune.runs.results import SplitSummary
from finetune.runs.run_folder import RunFolder

T = TypeVar("T")


class SharedWork:
    """What the runs of a series share: the results that depend on the rows and not on the seed are computed once.

    Attributes:
        is_quiet: whether the runs print nothing, because another process prints.
        keeps_process_group: whether the processes of a run train the next one together, too.
    """

    def __init__(self, *, is_quiet: bool = False, keeps_process_group: bool = False) -> None:
        self.is_quiet, self.keeps_process_group = is_quiet, keeps_process_group
        self._results: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Return the result of this name; it is computed the first time."""
        if name not in self._results:
            self._results[name] = compute()
        result: T = self._results[name]
        return result

    def first_time(self, name: str, lines: list[str]) -> list[str]:
        """Return the lines for the first run, and none for the others, which would print the same."""
        if name in self._results:
            return []
        self._results[name] = lines
        return lines

    def once_per_encoder(self, name: str, compute: Callable[[], T], recipe: Recipe) -> T:
        """Return a result that depends on the untrained encoder: shared if the encoder is the same for every seed."""
        random_adapters = recipe.peft is not None and recipe.peft.init_lora_weights not in (True, "gaussian")
        if random_adapters or recipe.training.reinit_layers or recipe.model.allow_missing_weights:
            return compute()
        return self.once(name, compute)


@dataclass(frozen=True)
class RunContext:
    """A run in progress: its recipe, its folder, its processes, and the console of the main process.

    Attributes:
        shared: the work that it shares with the other runs of its series.
    """

    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    console: Console
    shared: SharedWork = field(default_factory=SharedWork)

    def print_line(self, text: str) -> None:
        """Print one line on the main process."""
        print_line(self.console, text)


@dataclass(frozen=True)
class RunInputs:
    """The classifier of a run, its encoded splits, and a summary of each split.

    Attributes:
        held_out: the share of the training rows that is held out for validation, None if none is.
        probe: the linear model from which the classification head started; None if it started at random.
        notes: how the labels were read, where this is a choice.
    """

    classifier: Classifier
    splits: dict[str, EncodedSplit]
    summary: dict[str, SplitSummary]
    held_out: float | None = None
    probe: Probe | None = None
    notes: Sequence[str] = ()

    def held_out_splits(self) -> dict[str, EncodedSplit]:
        """Return the splits that are scored: all except the training rows."""
        return {name: split for name, split in self.splits.items() if name != "train"}

    def sample_texts(self, count: int = 8) -> list[tuple[str, ...]]:
        """Return the texts of the first training rows, to compare the logits of two classifiers on them."""
        columns = self.splits["train"].texts[:count]
        return list(zip(*columns.values(), strict=True))
