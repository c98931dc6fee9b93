"""Train SetFit on the rows of a request file, and print its predictions as one line of JSON.

    PYTHON tests/benchmarks/setfit_peer.py REQUEST.json

PYTHON has setfit 1.2 installed, which may be another environment than that of finetune: this file imports nothing from
the project. Settings are SetFit's defaults, except that pairs are drawn with num_iterations=20 (its default in the
paper; all pairs of 1,000 rows would take hours), and training has at most the steps that fit in the given seconds
(CPU time; with a GPU elapsed time).
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

BATCH, ITERATIONS = 16, 20
TRIAL_STEPS = 4


CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time


def build(request: dict[str, Any], multi_label: bool) -> SetFitModel:
    """Return an untrained SetFit model: the encoder with mean pooling, and logistic regression."""
    transformer = Transformer(request["encoder"], max_seq_length=request["max_length"])
    body = SentenceTransformer(modules=[transformer, Pooling(transformer.get_word_embedding_dimension(), "mean")])
    head = OneVsRestClassifier(LogisticRegression()) if multi_label else LogisticRegression()
    return SetFitModel(model_body=body, model_head=head, multi_target_strategy="one-vs-rest" if multi_label else None)


def train(model: SetFitModel, rows: Dataset, steps: int, seed: int) -> float:
    """Train the encoder on pairs for a number of steps, then the head, and return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, batch_size=BATCH, num_iterations=ITERATIONS, max_steps=steps, seed=seed, report_to="none",
            save_strategy="no", show_progress_bar=False,
        )  # fmt: skip
        started = CLOCK()
        Trainer(model, arguments, train_dataset=rows).train()
        return CLOCK() - started


def main(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    labels = np.array(request["labels"])
    rows = Dataset.from_dict({"text": request["train"], "label": labels.tolist()})
    model = build(request, labels.ndim == 2)
    steps = 2 * ITERATIONS * len(rows) // BATCH
    if request["seconds"] is not None:
        trial = copy.deepcopy(model)
        train(trial, rows, 1, request["seed"])
        once, several = (train(trial, rows, count, request["seed"]) for count in (1, 1 + TRIAL_STEPS))
        per_step = max(several - once, 1e-3) / TRIAL_STEPS
        steps = max(1, min(steps, int((request["seconds"] - once) / per_step)))
    started, started_cpu = time.perf_counter(), CLOCK()
    train(model, rows, steps, request["seed"])
    seconds = time.perf_counter() - started
    predicted = np.asarray(model.predict(request["test"])).astype(int).tolist()
    return {
        "predicted": predicted, "steps": steps, "train_seconds": seconds, "cpu_seconds": round(CLOCK() - started_cpu, 2)
    }  # fmt: skip


if __name__ == "__main__":
    print("\n" + json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
