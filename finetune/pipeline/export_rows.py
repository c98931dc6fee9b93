"""The rows on which an exported model is compared: those of the run's evaluation split, with their labels.

N rows, C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.evaluation.metric_formulas import none_if_undefined
from finetune.evaluation.metrics import compute_metrics
from finetune.models.outputs import OutputRules
from finetune.runs.json_files import damaged_file
from finetune.runs.predictions import read_predictions
from finetune.runs.run_folder import RunFolder


@dataclass(frozen=True)
class EvaluationRows:
    """Rows with labels.

    Attributes:
        split: test or validation.
        columns: the one or two text columns.
        labels: class ids (N,), 0/1 label sets (N, C) or values (N,).
    """

    split: str
    columns: list[list[str]]
    labels: np.ndarray

    def scores(self, predicted: np.ndarray, problem_type: str, num_classes: int) -> dict[str, float | None]:
        """Return all metrics of predictions in the form of `labels`; None where a metric is undefined."""
        values = compute_metrics(predicted, self.labels, problem_type, num_classes)
        return {name: none_if_undefined(value) for name, value in values.items()}


def read_rows(run: RunFolder, rules: OutputRules) -> EvaluationRows | None:
    """Return the test rows of a run, or its validation rows, from its predictions.parquet; None if it has neither.

    The data files are not read, so they may have been moved since.

    Raises:
        DataError: predictions.parquet is damaged, or its labels are not those of the model.
    """
    if not run.predictions.exists():
        return None
    table = read_predictions(run)
    splits = pc.unique(table["split"]).to_pylist()
    if not splits:
        return None
    split = "test" if "test" in splits else splits[0]
    table = table.filter(pc.equal(table["split"], split))
    columns = [table[name].to_pylist() for name in ("text", "text_1") if name in table.column_names]
    try:
        labels = _labels(table["label"], rules)
    except (KeyError, TypeError) as error:
        raise damaged_file(run.predictions, f"its labels are not those of the model: {error}") from error
    return EvaluationRows(split, columns, labels)


def _labels(column: pa.ChunkedArray, rules: OutputRules) -> np.ndarray:
    """Return a column of label names, lists of names, or values as class ids, 0/1 label sets, or values."""
    if rules.problem_type == "regression":
        return np.asarray(column.to_numpy(), np.float64)
    ids = {name: index for index, name in enumerate(rules.label_names)}
    if rules.problem_type == "single_label_classification":
        return np.array([ids[name] for name in column.to_pylist()], np.int64)
    sets = np.zeros((len(column), len(ids)), np.int64)
    for row, names in enumerate(column.to_pylist()):
        sets[row, [ids[name] for name in names]] = 1
    return sets
