"""One peer on one cell, in its own process: train, score, and print the measurements as one line of JSON.

    python -m tests.benchmarks.peer_methods '{"cell": {...}, "settings": {...}, "options": {...}}'

A process of its own, because some speedups of finetune act on the whole process and would help the peers too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from finetune.evaluation.metrics import compute_metrics
from finetune.models.precision import device_precision
from finetune.models.pretrained import Source, quiet_libraries
from tests.benchmarks.cells import Cell, Line, Task, load_task
from tests.benchmarks.train_cell import Settings, Timer, encoder_name, train_cell
from tests.support import ROOT

MAX_LENGTH = 128
C = 10.0  # inverse strength of the penalty of logistic regression
SETFIT = ROOT / "tests/benchmarks/setfit_peer.py"


@dataclass(frozen=True)
class Rows:
    """Rows of a cell: one or two texts per row, and class ids (N,) or label sets (N, C) of 0 and 1."""

    texts: list[list[str]]
    labels: np.ndarray

    def joined(self, separator: str = " ") -> list[str]:
        return [separator.join(texts) for texts in self.texts]


@dataclass(frozen=True)
class Prepared:
    """What every peer gets."""

    cell: Cell
    settings: Settings
    options: dict[str, Any]
    task: Task
    train: Rows
    test: Rows

    @property
    def encoder(self) -> str:
        return Source(self.settings.encoder).location()


@dataclass(frozen=True)
class Result:
    """Predicted labels in the form of `Rows.labels`, optimizer steps, and seconds of training.

    Attributes:
        cpu_seconds: of a process that this one started; None: what a `Timer` of this process measures.
    """

    predicted: np.ndarray
    steps: int
    train_seconds: float
    cpu_seconds: float | None = None


def rows_of(task: Task, table: Any) -> Rows:
    """Return the rows of a parquet table."""
    texts = [list(row) for row in zip(*(table.column(name).to_pylist() for name in task.text_columns), strict=True)]
    labels = table.column(task.label_column).to_pylist()
    if not task.multi_label:
        return Rows(texts, np.array(labels))
    sets = np.zeros((len(labels), len(task.label_names)), dtype=int)
    for row, ids in enumerate(labels):
        sets[row, ids] = 1
    return Rows(texts, sets)


def fit_logistic_regression(features: Any, labels: np.ndarray) -> Any:
    """Return a fitted logistic regression, one per label for label sets."""
    model = LogisticRegression(C=C, max_iter=1000)
    if labels.ndim == 1:
        return model.fit(features, labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label not")  # a label without training rows is never predicted
        return OneVsRestClassifier(model).fit(features, labels)


def tfidf(given: Prepared) -> Result:
    """TF-IDF of words and word pairs, and logistic regression."""
    started = time.perf_counter()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    model = fit_logistic_regression(vectorizer.fit_transform(given.train.joined()), given.train.labels)
    seconds = time.perf_counter() - started
    return Result(model.predict(vectorizer.transform(given.test.joined())), 0, seconds)


def frozen(given: Prepared) -> Result:
    """Logistic regression on the mean of the frozen encoder's last hidden states."""
    tokenizer = AutoTokenizer.from_pretrained(given.encoder)
    model = AutoModel.from_pretrained(given.encoder).eval().to(device())
    started = time.perf_counter()
    regression = fit_logistic_regression(mean_states(model, tokenizer, given.train), given.train.labels)
    seconds = time.perf_counter() - started
    return Result(regression.predict(mean_states(model, tokenizer, given.test)), 0, seconds)


@torch.no_grad()
def mean_states(model: Any, tokenizer: Any, rows: Rows, batch_size: int = 64) -> np.ndarray:
    """Return the mean last hidden state of each row (N, hidden size), without padding."""
    order = np.argsort([sum(map(len, texts)) for texts in rows.texts], kind="stable")
    states = np.zeros((len(order), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        columns = [list(column) for column in zip(*(rows.texts[index] for index in indices), strict=True)]
        batch = tokenizer(*columns, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt").to(
            model.device
        )
        mask = batch["attention_mask"][..., None]  # (B, S, 1)
        hidden = model(**batch).last_hidden_state  # (B, S, hidden size)
        states[indices] = ((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy()
    return states


def trainer_default(given: Prepared) -> Result:
    """`Trainer` with its defaults."""
    return train_with_trainer(given, {})


def trainer_tuned(given: Prepared) -> Result:
    """`Trainer` with the best fixed setting that was found."""
    options = dict(given.options["tuned"])
    if len(given.task.label_names) > given.options["many_labels"]:
        options |= given.options["tuned_many"]
    return train_with_trainer(given, options | {"bf16": device_precision(use_cpu=device() == "cpu") == "bf16"})


def train_with_trainer(given: Prepared, options: dict[str, Any]) -> Result:
    """Return the result of `AutoModelForSequenceClassification` and `Trainer` with these arguments."""
    set_seed(given.cell.seed)
    kind = "multi_label_classification" if given.task.multi_label else "single_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(given.encoder)
    model = AutoModelForSequenceClassification.from_pretrained(
        given.encoder, num_labels=len(given.task.label_names), problem_type=kind
    )

    def encoded(rows: Rows) -> datasets.Dataset:
        columns = [list(column) for column in zip(*rows.texts, strict=True)]
        labels = rows.labels.astype(float) if given.task.multi_label else rows.labels
        tokens = tokenizer(*columns, truncation=True, max_length=MAX_LENGTH)
        return datasets.Dataset.from_dict({**tokens, "labels": labels.tolist()})

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, report_to=[], save_strategy="no", disable_tqdm=True, seed=given.cell.seed,
            use_cpu=device() == "cpu", **options,
        )  # fmt: skip
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), encoded(given.train))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        logits = trainer.predict(encoded(given.test)).predictions
    predicted = (logits > 0).astype(int) if given.task.multi_label else logits.argmax(-1)
    return Result(predicted, trainer.state.global_step, seconds)


def setfit(given: Prepared) -> Result:
    """SetFit, in the Python that has it, with at most the training time of finetune on the same cell."""
    if given.options["setfit_python"] is None:
        raise ValueError("--setfit-python is missing")
    request = {
        "encoder": given.encoder,
        "train": given.train.joined(" [SEP] "),
        "labels": given.train.labels.tolist(),
        "test": given.test.joined(" [SEP] "),
        "seed": given.cell.seed,
        "threads": given.settings.threads,
        "seconds": given.options["seconds"],
        "max_length": MAX_LENGTH,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        answer = last_json_line([given.options["setfit_python"], str(SETFIT), str(file)], given.settings.threads)
    return Result(np.array(answer["predicted"]), answer["steps"], answer["train_seconds"], answer["cpu_seconds"])


PEERS: dict[str, Callable[[Prepared], Result]] = {
    "trainer_default": trainer_default,
    "trainer_tuned": trainer_tuned,
    "setfit": setfit,
    "frozen": frozen,
    "tfidf": tfidf,
}


def device() -> str:
    """Return the device that peers run on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def last_json_line(command: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a command, and return the JSON on the last line of its output; RuntimeError if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[-2]} failed: {done.stderr.strip()[-480:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def in_new_process(cell: Cell, settings: Settings, options: dict[str, Any]) -> Line:
    """Return the line of a cell, measured in a new process."""
    request = {
        "cell": asdict(cell),
        "settings": asdict(settings) | {"data": str(settings.data.resolve())},
        "options": options,
    }
    return last_json_line(
        [sys.executable, "-m", "tests.benchmarks.peer_methods", json.dumps(request)], settings.threads
    )


def measure(cell: Cell, settings: Settings, options: dict[str, Any]) -> Line:
    """Return the line of a cell."""
    if cell.variant == "ours":
        return train_cell(cell, settings, options["ours"]) | {"differs": list(options["ours"])}
    timer, date = Timer(), datetime.now(UTC)
    task = load_task(settings.data / cell.data)
    train = rows_of(task, task.train_rows(cell.rows, cell.seed))
    test = rows_of(task, task.scored_rows(settings.split, settings.max_rows))
    result = PEERS[cell.variant](Prepared(cell, settings, options, task, train, test))
    kind = "multi_label_classification" if task.multi_label else "single_label_classification"
    values = compute_metrics(result.predicted, test.labels, kind, len(task.label_names))
    return {
        **asdict(cell),
        "metric": task.metric,
        "score": values[task.metric],
        "scored": [settings.split, len(test.texts)],
        "steps": result.steps,
        "train_seconds": round(result.train_seconds, 2),
        "cpu_seconds": result.cpu_seconds or timer.seconds(),
        "differs": [],
        "encoder": encoder_name(settings.encoder),
        "date": date.isoformat(timespec="seconds"),
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        "threads": settings.threads,
    }


def main(request: dict[str, Any]) -> None:
    quiet_libraries()
    datasets.disable_progress_bars()
    settings = Settings(**request["settings"] | {"data": Path(request["settings"]["data"])})
    torch.set_num_threads(settings.threads)
    print("\n" + json.dumps(measure(Cell(**request["cell"]), settings, request["options"])))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
