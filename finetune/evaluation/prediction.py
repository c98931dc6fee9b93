"""Run a classifier over every row of a split. Training, evaluation and head analysis all use this function.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.batching import LocalBatch, load_batches, map_parts
from finetune.data.cpu_copies import Block, CpuCopies
from finetune.data.sampler import plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.evaluation.metric_formulas import none_if_undefined
from finetune.evaluation.metrics import metric_values
from finetune.evaluation.scored_rows import ScoredRows
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import scoring_kernels
from finetune.models.int8_products import check_int8_layers
from finetune.models.losses import per_example_loss
from finetune.models.outputs import OutputRules
from finetune.models.precision import INT8, check_autocast
from finetune.models.speedups import sped_up
from finetune.progress import stage
from finetune.recipe.names import METRICS


@dataclass(frozen=True)
class Predictions:
    """The model outputs for every row of a split, in the order of its rows.

    Attributes:
        logits: (N, C).
        losses: (N,).
        labels: class ids (N,), 0/1 label sets (N, C) or values (N,).
        rules: how logits become probabilities and predicted labels.
    """

    logits: torch.Tensor
    losses: torch.Tensor
    labels: np.ndarray
    rules: OutputRules

    @property
    def problem_type(self) -> str:
        """The kind of task: single_label_classification, multi_label_classification or regression."""
        return self.rules.problem_type

    def predicted_labels(self) -> np.ndarray:
        """Return the predicted labels, in the same form as `labels`."""
        if self.problem_type == "regression":
            return self.logits.float().squeeze(-1).numpy()
        return self.rules.decisions(self.rules.probabilities(self.logits.numpy())).astype(np.int64)

    def probabilities(self) -> np.ndarray:
        """Return class probabilities (N, C), or the predicted values (N, 1) in regression, in float32."""
        return self.rules.probabilities(self.logits.numpy()).astype(np.float32)

    def loss(self) -> float:
        """Return the mean loss."""
        return float(self.losses.double().mean())

    def scored_rows(self) -> ScoredRows:
        """Return labels and predictions, from which every metric can be computed."""
        probabilities = None if self.problem_type == "regression" else self.probabilities()
        names = self.rules.label_names
        return ScoredRows(self.labels, self.predicted_labels(), probabilities, names, self.problem_type)

    def metrics(self, names: Sequence[str] | None = None) -> dict[str, float | None]:
        """Return the mean loss and metrics by their names in results; None where a metric is undefined.

        Args:
            names: as a recipe names them; None: all metrics of the toolkit.
        """
        rows = self.scored_rows()
        values = metric_values(tuple(METRICS[self.problem_type]) if names is None else names, rows)
        return {"loss": self.loss(), **{name: none_if_undefined(value) for name, value in values.items()}}


@torch.no_grad()  # not inference_mode: distributed training that continues after an evaluation would fail
def predict(classifier: Classifier, split: EncodedSplit, *, batch_size: int, accelerator: Accelerator) -> Predictions:
    """Return the predictions for every row of a split. Each row is scored once, by one of the processes.

    The batches do not depend on the number of processes, so the results are bit-identical for any number.

    Raises:
        ModelError: the model cannot run in the precision of the accelerator.
    """
    check_autocast(classifier.base, accelerator.mixed_precision)
    if accelerator.mixed_precision == INT8:
        check_int8_layers(classifier.base)
    model, training = classifier.model, classifier.model.training
    model.to(accelerator.device).eval()
    batches = plan_scoring(split.lengths, batch_size)[accelerator.process_index :: accelerator.num_processes]

    def predict_part(part: LocalBatch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(**part.inputs).logits.float()
        return logits, per_example_loss(logits, part.labels, classifier.problem_type)

    def predict_local() -> list[Block]:
        """Return rows, logits and losses of all batches of this process."""
        results = CpuCopies()
        max_rows: int | None = None
        loaded = load_batches(split, batches, classifier.tokenizer, device=accelerator.device)
        # One autocast context for all batches: it caches the cast weights until it ends.
        with (
            sped_up(classifier, accelerator),
            scoring_kernels(model),
            accelerator.autocast(),
            stage(f"scoring {split.source}", total=len(batches)) as running,
        ):
            for rows, batch in zip(batches, loaded, strict=True):
                parts, max_rows = map_parts(predict_part, batch, max_rows, "scoring")
                results.add(rows, *map(torch.cat, zip(*parts, strict=True)))
                running.advance()
        return results.blocks()

    parts = [part for results in gather_results(accelerator, predict_local) for part in results]
    model.train(training)
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in parts])))
    logits, losses = (torch.cat(column)[order] for column in zip(*(results for _, results in parts), strict=True))
    assert len(order) == len(split), f"scored {len(order)} of {len(split)} rows"
    return Predictions(logits, losses, split.labels, classifier.rules)
