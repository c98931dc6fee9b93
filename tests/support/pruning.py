"""Pruning a run from the command line, and the accuracy of a classifier on the rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main
from finetune.evaluation.prediction import predict
from finetune.heads.latency import Latencies
from finetune.heads.sublayers import HEADS, NEURONS, Sublayer, sublayers
from finetune.models.classifier import Classifier
from finetune.pipeline.finished_run import FinishedRun
from finetune.runs.json_files import read_json
from finetune.runs.pruning_result import PruningResult

FIXED, PER_PART = 20.0, {HEADS: 6.0, NEURONS: 1.5}  # seconds


def prune_run(run: Path, *options: str) -> PruningResult:
    """Prune a run with `finetune prune` and return the saved result."""
    assert main(["prune", str(run), *options]) == 0
    assert not list(run.glob(".*"))  # no temporary files remain
    return read_json(run / "pruned" / "pruning.json", PruningResult)


def accuracy(run: FinishedRun, classifier: Classifier, split: str) -> float:
    """Return the accuracy of the classifier on a split of the run."""
    predictions = predict(classifier, run.inputs.splits[split], batch_size=64, accelerator=run.context.accelerator)
    value = predictions.metrics()["accuracy"]
    assert value is not None
    return value


def count_instead_of_timing(monkeypatch: pytest.MonkeyPatch, overhead: float = 1.0) -> None:
    """Replace time measurements: every head and neuron takes PER_PART seconds, the rest of the model FIXED.

    Args:
        overhead: measured seconds of a pruned model, over those that the table predicts.
    """

    def seconds(parts: Sequence[Sublayer]) -> float:
        return FIXED + sum(PER_PART[part.kind] * part.num_parts * len(part.layers) for part in parts)

    def latencies(classifier: Classifier, parts: Sequence[Sublayer], *_: Any) -> Latencies:
        by_size = [tuple(PER_PART[part.kind] * len(part.layers) * size for size in part.sizes()) for part in parts]
        return Latencies(seconds(sublayers(classifier.base)), tuple(by_size))

    def speeds(before: Classifier, after: Classifier, *_: Any, **__: Any) -> tuple[float, float]:
        times = [seconds(sublayers(classifier.base)) for classifier in (before, after)]
        return 1 / times[0], 1 / times[1] / overhead

    monkeypatch.setattr("finetune.pipeline.choose_sizes.measure_latencies", latencies)
    monkeypatch.setattr("finetune.pipeline.choose_sizes.measure_speed", speeds)
