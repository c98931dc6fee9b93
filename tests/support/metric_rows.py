"""Rows with labels and predictions, and files with metrics, for the tests of metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.evaluation.scored_rows import ScoredRows

COST = """
import datasets, evaluate
from .weights import MISSED

class Cost(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references):
        costs = [0 if p == r else MISSED if r else 1 for p, r in zip(predictions, references)]
        return {RESULT}
"""


def scored_rows(problem_type: str, rows: int = 40, classes: int = 3, seed: int = 0) -> ScoredRows:
    """Return rows whose predictions are better than chance; probabilities are rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    names = tuple(f"label {index}" for index in range(classes))
    if problem_type == "regression":
        labels = rng.random(rows) * 5
        return ScoredRows(labels, labels + rng.normal(size=rows) + 1.5, None, ("value",), problem_type)
    if problem_type == "single_label_classification":
        labels = np.arange(rows) % classes
        scores = rng.random((rows, classes)) + 0.5 * np.eye(classes)[labels]
        probabilities = np.round(scores / scores.sum(1, keepdims=True), 2)
        return ScoredRows(labels, probabilities.argmax(1), probabilities, names, problem_type)
    sets = (rng.random((rows, classes)) < 0.4).astype(int)
    sets[np.arange(rows), np.arange(rows) % classes] = 1  # no empty set, whose F1 is 0 also if it is predicted
    probabilities = np.round(0.6 * rng.random((rows, classes)) + 0.4 * sets, 2)
    return ScoredRows(sets, (probabilities > 0.5).astype(int), probabilities, names, problem_type)


def write_cost_metric(folder: Path, result: str = '"cost_error": sum(costs) / len(costs)') -> Path:
    """Write a metric into a folder and return its file; it imports the file next to it."""
    (folder / "weights.py").write_text("MISSED = 5\n")
    file = folder / "cost_error.py"
    file.write_text(COST.replace("RESULT", result))
    return file
