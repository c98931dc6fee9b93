"""The linear probe of a run, from which a classification head can start, and which is also a baseline."""

from __future__ import annotations

import numpy as np

from finetune.data.holdout import sample_training_rows
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.evaluation.probe import Probe, fit_probe
from finetune.models.classifier import Classifier
from finetune.models.pooled_states import Pooling, pooled_states
from finetune.pipeline.context import RunContext
from finetune.progress import stage

# Training rows to which the probe is fitted, drawn at random. The states of more rows would take longer than a short
# training run.
MAX_PROBE_ROWS = 5_000


def probe_positions(labels: np.ndarray, num_labels: int, seed: int) -> np.ndarray:
    """Return the positions of the training rows to which the probe is fitted, sorted.

    They are all rows, or MAX_PROBE_ROWS with at least one of each class.
    """
    limit = max(MAX_PROBE_ROWS, num_labels)
    return np.arange(len(labels)) if len(labels) <= limit else sample_training_rows(labels, limit, seed)


def probe_rows(train: EncodedSplit, num_labels: int, seed: int) -> EncodedSplit:
    """Return the rows to which the probe is fitted; see `probe_positions`."""
    positions = probe_positions(train.labels, num_labels, seed)
    return train if len(positions) == len(train) else train.select(positions)


def probe_states(context: RunContext, classifier: Classifier, train: EncodedSplit, pooling: Pooling) -> np.ndarray:
    """Return the pooled states of the rows of `probe_rows`, (N, E); they are computed once.

    The encoder must be as it was before training. The processes share the computation.
    """
    recipe = context.recipe

    def compute() -> np.ndarray:
        rows = probe_rows(train, len(classifier.label_names), recipe.rows_seed())
        batch_size = recipe.evaluation.per_device_eval_batch_size
        return pooled_states(classifier, rows, pooling=pooling, batch_size=batch_size, accelerator=context.accelerator)

    return context.shared.once_per_encoder(f"pooled states, {pooling}", compute, recipe)


def fit_linear_probe(context: RunContext, classifier: Classifier, train: EncodedSplit, pooling: Pooling) -> Probe:
    """Return a linear model on the pooled states of the classifier's encoder, the same on every process.

    The main process fits the model.
    """
    num_labels, seed = len(classifier.label_names), context.recipe.rows_seed()
    states = probe_states(context, classifier, train, pooling)

    def fit() -> Probe | None:
        if not context.accelerator.is_main_process:
            return None
        labels = train.labels[probe_positions(train.labels, num_labels, seed)]
        return fit_probe(states, labels, classifier.problem_type, num_labels, seed)

    with stage("fitting the linear probe"):
        probe = gather_results(context.accelerator, fit)[0]
    assert probe is not None
    return probe
