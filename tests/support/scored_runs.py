"""Run folders whose scores fit their predictions, for tests of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.evaluation.intervals import classification_intervals
from finetune.evaluation.metric_formulas import confusion_matrix
from finetune.evaluation.regression_intervals import regression_intervals
from finetune.report import write_report
from finetune.runs.json_files import append_line, write_json
from finetune.runs.results import MetricValue, SplitScores, SplitSummary
from finetune.runs.run_folder import RunFolder
from tests.support.compared_runs import write_run

OTHER_METRIC = "other_score"


def write_scored_report(
    path: Path, table: pa.Table, problem_type: str, names: list[str], labels: np.ndarray, predicted: np.ndarray
) -> Path:
    """Write a run with the first metric of its problem type and one that the page does not compute; return its report.

    Args:
        table: the predictions of the test rows, see `row_pages`.
        labels: class ids (N,), 0/1 label sets (N, C) or values (N,).
        predicted: in the same form.
    """
    write_run(path, {"test": table.drop_columns(["split"])}, problem_type=problem_type, names=names)
    if problem_type == "regression":
        metrics, per_class = regression_intervals(predicted, labels), []
    else:
        metrics, per_class = classification_intervals(predicted, labels, names)
    first = next(iter(metrics))
    confusion = None
    if problem_type == "single_label_classification":
        confusion = confusion_matrix(predicted, labels, len(names)).tolist()
    scores = SplitScores(
        len(labels), 0.5, {first: metrics[first], OTHER_METRIC: MetricValue(0.5)}, per_class, confusion
    )
    folder = RunFolder(path)
    write_json(folder.scores, {"test": scores})
    summary = SplitSummary(len(labels), {}, 7.0, 12, 0.0)
    write_json(folder.data, {"train": summary, "test": summary})
    append_line(folder.history, {"step": 2, "epoch": 1.0, "eval_loss": 0.6})
    write_report(folder)
    return folder.report
