"""Prune a run from the command line, and score a classifier on a run's rows."""

from __future__ import annotations

from pathlib import Path

from finetune.cli import main
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.pipeline.finished_run import FinishedRun
from finetune.runs.head_results import PruningResult
from finetune.runs.json_files import read_json


def prune_run(run: Path, *options: str) -> PruningResult:
    assert main(["prune", str(run), *options]) == 0
    assert not list(run.glob(".*"))  # nothing is left aside
    return read_json(run / "pruned" / "pruning.json", PruningResult)


def accuracy(run: FinishedRun, classifier: Classifier, split: str) -> float:
    found = predict(classifier, run.inputs.splits[split], batch_size=64, accelerator=run.context.accelerator)
    return found.metrics()["accuracy"]
