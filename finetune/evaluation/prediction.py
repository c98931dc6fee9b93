"""Predict a split and score it; training, head analysis and evaluation all come here.

N rows, C classes
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator

from finetune.data.batching import LocalBatch, in_parts, load_batches, plan_scoring
from finetune.data.tokenization import EncodedSplit, as_arrow
from finetune.distributed import gather_results
from finetune.evaluation.baseline import baseline_warnings
from finetune.evaluation.bootstrap import classification_intervals, interval_note, regression_intervals
from finetune.evaluation.metrics import compute_metrics, confusion_matrix, defined
from finetune.models.classifier import Classifier
from finetune.models.losses import decisions, per_example_loss, probabilities
from finetune.models.speedups import sped_up
from finetune.out_of_memory import halve_rows, is_out_of_memory
from finetune.runs.atomic_files import report_write_errors, temporary_path
from finetune.runs.results import ClassScores, SplitScores


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of each row of a split, in the split's order.

    Attributes:
        logits: (N, C).
        losses: (N,).
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
    """

    logits: torch.Tensor
    losses: torch.Tensor
    labels: np.ndarray
    problem_type: str

    def decided(self) -> np.ndarray:
        """Return predictions in the form of the labels."""
        return decisions(self.logits, self.problem_type).numpy()

    def probabilities(self) -> np.ndarray:
        """Return class probabilities (N, C), or values (N, 1) in regression."""
        return probabilities(self.logits, self.problem_type).numpy()

    def loss(self) -> float:
        """Return the mean loss."""
        return float(self.losses.double().mean())

    def metrics(self) -> dict[str, float | None]:
        """Return the mean loss and every metric of the problem type, None where it is undefined."""
        values = compute_metrics(self.decided(), self.labels, self.problem_type, self.logits.shape[-1])
        return {"loss": self.loss(), **{name: defined(value) for name, value in values.items()}}


@torch.no_grad()  # not inference_mode: its tensors break the training of several processes that goes on after
def predict(classifier: Classifier, split: EncodedSplit, *, batch_size: int, accelerator: Accelerator) -> Predictions:
    """Return predictions for every row, each computed once by one of the processes.

    Batches are the same for any number of processes, and so are the results, to the bit.
    """
    model, training = classifier.model, classifier.model.training
    model.to(accelerator.device).eval()
    batches = plan_scoring(split.lengths, batch_size)[accelerator.process_index :: accelerator.num_processes]

    def predict_mine() -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        found: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]] = []
        most: int | None = None
        loaded = load_batches(split, batches, classifier.tokenizer, device=accelerator.device)
        # One autocast for all batches: it keeps the weights that it has cast until it ends.
        with sped_up(classifier, accelerator), accelerator.autocast():
            for rows, batch in zip(batches, loaded, strict=True):
                logits, losses, most = _scored(classifier, batch, most)
                found.append((rows, logits.cpu(), losses.cpu()))
        return found

    parts = [part for found in gather_results(accelerator, predict_mine) for part in found]
    model.train(training)
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _, _ in parts])))
    logits = torch.cat([part for _, part, _ in parts])[order]
    losses = torch.cat([part for _, _, part in parts])[order]
    assert len(order) == len(split), f"scored {len(order)} of {len(split)} rows"
    return Predictions(logits, losses, split.labels, classifier.problem_type)


def _scored(
    classifier: Classifier, batch: LocalBatch, most: int | None
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Return logits and losses of a batch, put to the model `most` rows at a time, and how many it took at a time.

    Where memory runs out, that number is halved. No process waits for another here, so each finds its own.

    Raises:
        TrainingError: memory does not suffice for one row.
    """
    while True:
        parts = []
        try:
            for part in in_parts(batch, most):
                logits = classifier.model(**part.inputs).logits.float()
                parts.append((logits, per_example_loss(logits, part.labels, classifier.problem_type)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts]), most
        most = halve_rows(min(most or len(batch.labels), len(batch.labels)), "scoring")
        print(f"Out of memory in scoring: {most} rows at a time from here on.", file=sys.stderr)


def score(
    predictions: Predictions, label_names: Sequence[str], metrics: Sequence[str], *, samples: int, seed: int
) -> SplitScores:
    """Return the asked metrics with bootstrap intervals, the per-class table and the confusion matrix."""
    decided = predictions.decided()
    names = list(label_names)
    per_class: list[ClassScores] = []
    if predictions.problem_type == "regression":
        cells = regression_intervals(decided, predictions.labels, samples=samples, seed=seed)
    else:
        cells, per_class = classification_intervals(decided, predictions.labels, names, samples=samples, seed=seed)
    confusion = None
    if predictions.problem_type == "single_label_classification":
        confusion = confusion_matrix(decided, predictions.labels, len(names)).tolist()
    return SplitScores(
        rows=len(predictions.labels),
        loss=predictions.loss(),
        metrics={name: cells[name] for name in metrics},
        per_class=per_class,
        confusion=confusion,
        interval_note=interval_note(len(predictions.labels)),
        warnings=baseline_warnings(decided, predictions.labels, names if per_class else [], cells),
    )


def predictions_table(
    split: str, encoded: EncodedSplit, predictions: Predictions, label_names: Sequence[str]
) -> pa.Table:
    """Return one line a row: split, row, text, label, predicted, probabilities in label order, loss.

    `row` is the row's number where it is from, counted from 1.
    """
    names = pa.array(label_names, pa.string())
    texts = encoded.texts.with_format("arrow")[:].combine_chunks()
    return pa.table(
        {
            "split": pa.repeat(split, len(encoded)),
            "row": pa.array(encoded.numbers),
            **{f"text_{index}" if index else "text": column for index, column in enumerate(texts.columns)},
            "label": _named(predictions.labels, names),
            "predicted": _named(predictions.decided(), names),
            "probabilities": as_arrow(predictions.probabilities()),
            "loss": pa.array(predictions.losses.numpy()),
        }
    )


def _named(values: np.ndarray, names: pa.StringArray) -> pa.Array:
    """Return values as they are; ids (N,) as names; 0/1 sets (N, C) as lists of names."""
    if values.dtype.kind == "f":
        return pa.array(values)
    if values.ndim == 1:
        return names.take(pa.array(values))
    ends = np.concatenate([[0], values.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), names.take(pa.array(values.nonzero()[1])))


def write_predictions(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write the tables of all splits as one parquet file, whole or not at all.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with report_write_errors(path):
        aside = temporary_path(path)
        pq.write_table(pa.concat_tables(tables), aside)
        aside.replace(path)
