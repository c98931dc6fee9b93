"""A finished run whose name, labels and texts try to break the page that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.report import write_report
from finetune.runs.json_files import append_line, write_json
from finetune.runs.results import ClassScores, MetricValue, SplitScores, SplitSummary, TrainingResult, TrainingSpeed
from finetune.runs.run_folder import RunFolder

HOSTILE_NAME = '<img src=x onerror=attacked=1> & "run" \' {{ 7 * 7 }}'
HOSTILE_LABELS = ["</script><script>attacked=1</script>", "<b onclick=attacked=1>no</b>", "__proto__", "a&amp;b '\""]
HOSTILE_TEXTS = [
    "</script><script>attacked=1</script>", "<img src=x onerror=attacked=1>",
    "]]><!-- --><style>*{display:none}</style>",
    "x" * 100_000, "\u202etxt.exe", "\0\a\x1b[31m", "{{ 7 * 7 }} ${attacked=1} `", " \t\r\n ",
    "\ufdfd \u0301\u0301", "", "javascript:attacked=1", "\\u003cscript\\u003e",
]  # fmt: skip
_ENVIRONMENT = {
    "started": "2026-01-02T03:04:05+00:00", "device": "cpu", "processes": 1, "mixed_precision": "no", "python": "3.11",
    "packages": {"torch": "2.13"}, "commit": None, "finetune": "1.0", "seed": 1,
}  # fmt: skip


def write_hostile_run(parent: Path) -> RunFolder:
    """Write the folder of a run with hostile names and texts, and its report."""
    run = RunFolder(parent / HOSTILE_NAME)
    run.path.mkdir()
    recipe = {"seed": 1, "output_dir": "x", "model": {"model_name_or_path": "some/<b>model</b>"},
              "data": {"train_file": "a<i>.csv", "validation_size": 0.1}}  # fmt: skip
    run.recipe.write_text(json.dumps(recipe) + "\n")
    write_json(run.environment, _ENVIRONMENT)
    counts = dict.fromkeys(HOSTILE_LABELS, 3)
    write_json(run.data, {name: SplitSummary(len(HOSTILE_TEXTS), counts, 7.0, 12, 0.0) for name in ("train", "test")})
    append_line(run.history, {"step": 1, "epoch": 1.0, "loss": 0.5, "learning_rate": 0.1})
    speed = TrainingSpeed(1.0, 123.4, 1000.0, 0.05, 200.0, 900.0)
    write_json(run.training, TrainingResult(2, 2, "accuracy", 0.9, "all epochs done", 1234, 56789, "float32", speed))
    value = MetricValue(0.75, 0.5, 0.9)
    classes = [ClassScores(name, value, value, value, 3) for name in HOSTILE_LABELS]
    confusion = [[3 * (row == column) for column in range(4)] for row in range(4)]
    write_json(run.scores, {"test": SplitScores(len(HOSTILE_TEXTS), 0.3, {"accuracy": value}, classes, confusion)})
    pq.write_table(_predictions(), run.predictions)
    write_report(run)
    return run


def _predictions() -> pa.Table:
    rows = len(HOSTILE_TEXTS)
    labels = np.arange(rows) % 4
    probabilities = np.full((rows, 4), 0.1)
    probabilities[np.arange(rows), (labels + (np.arange(rows) % 5 == 0)) % 4] = 0.7
    names = pa.array(HOSTILE_LABELS)
    return pa.table(
        {
            "split": ["test"] * rows, "row": np.arange(1, rows + 1), "text": HOSTILE_TEXTS,
            "label": names.take(pa.array(labels)), "predicted": names.take(pa.array(probabilities.argmax(axis=1))),
            "probabilities": list(probabilities.astype(np.float32)),
            "loss": -np.log(probabilities[np.arange(rows), labels]),
        }
    )  # fmt: skip
