"""The linear probe of a run, from which a classification head can start, and which is also a baseline."""

from __future__ import annotations

from accelerate import Accelerator

from finetune.data.holdout import sample_training_rows
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.evaluation.probe import Probe, fit_probe
from finetune.models.classifier import Classifier
from finetune.models.pooled_states import Pooling, pooled_states
from finetune.progress import stage
from finetune.recipe.schema import Recipe

# Training rows to which the probe is fitted, drawn at random. The states of more rows would take longer than a short
# training run.
MAX_PROBE_ROWS = 5_000


def probe_rows(train: EncodedSplit, num_labels: int, seed: int) -> EncodedSplit:
    """Return the rows to which the probe is fitted: all, or MAX_PROBE_ROWS with at least one of each class."""
    limit = max(MAX_PROBE_ROWS, num_labels)
    return train if len(train) <= limit else train.select(sample_training_rows(train.labels, limit, seed))


def fit_linear_probe(
    classifier: Classifier, train: EncodedSplit, recipe: Recipe, accelerator: Accelerator, pooling: Pooling
) -> Probe:
    """Return a linear model on the pooled states of the classifier's encoder, the same on every process.

    The processes share the computation of the states, and the main process fits the model.
    """
    num_labels = len(classifier.label_names)
    rows = probe_rows(train, num_labels, recipe.rows_seed())
    batch_size = recipe.evaluation.per_device_eval_batch_size
    states = pooled_states(classifier, rows, pooling=pooling, batch_size=batch_size, accelerator=accelerator)

    def fit() -> Probe | None:
        if not accelerator.is_main_process:
            return None
        return fit_probe(states, rows.labels, classifier.problem_type, num_labels, recipe.rows_seed())

    with stage("fitting the linear probe"):
        probe = gather_results(accelerator, fit)[0]
    assert probe is not None
    return probe
