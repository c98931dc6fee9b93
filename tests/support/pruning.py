"""Pruning a run from the command line, and the accuracy of a classifier on the rows of a run."""

from __future__ import annotations

from pathlib import Path

from finetune.cli import main
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.pipeline.finished_run import FinishedRun
from finetune.runs.head_results import PruningResult
from finetune.runs.json_files import read_json


def prune_run(run: Path, *options: str) -> PruningResult:
    """Prune a run with `finetune prune` and return the saved result."""
    assert main(["prune", str(run), *options]) == 0
    assert not list(run.glob(".*"))  # no temporary files remain
    return read_json(run / "pruned" / "pruning.json", PruningResult)


def accuracy(run: FinishedRun, classifier: Classifier, split: str) -> float:
    """Return the accuracy of the classifier on a split of the run."""
    predictions = predict(classifier, run.inputs.splits[split], batch_size=64, accelerator=run.context.accelerator)
    return predictions.metrics()["accuracy"]
