"""The score that explanations of one row are about, and passes over many variants of a batch.

B batch, S tokens, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from finetune.data.windows import WINDOW_COUNTS
from finetune.models.classifier import Classifier
from finetune.out_of_memory import halve_rows, is_out_of_memory

Inputs = Mapping[str, Tensor]

SCORE_NAMES = {
    "single_label_classification": "log-odds of the label",
    "multi_label_classification": "log-odds of the label",
    "regression": "predicted value",
}
# Tokens in one forward pass. On a CPU the hidden states of a layer should fit in the cache (see fast_ablation.py).
_TOKENS_CPU, _TOKENS_ACCELERATOR = 1024, 2**16


def tokenized(classifier: Classifier, columns: list[list[str]]) -> dict[str, Tensor]:
    """Return the model inputs (B, S) of one or two columns of B texts on the model's device, padded.

    A text longer than `max_length` tokens is read as in training; see data/windows.py for several windows.
    """
    encoder, device = classifier.encoder, next(classifier.base.parameters()).device
    encoded = encoder.encode(columns)
    batch = encoder.batch(encoded, np.arange(len(encoded.lengths)))
    if (encoded.window_counts > 1).any():
        batch[WINDOW_COUNTS] = encoded.window_counts
    return {name: torch.from_numpy(values).to(device) for name, values in batch.items()}


def predicted_targets(logits: Tensor) -> Tensor:
    """Return the label with the highest logit of each row, (B,), from logits (B, C); 0 for regression.

    For multi-label problems that is the most probable label, even if it is not predicted.
    """
    return logits.argmax(-1)


def target_scores(logits: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    """Return the score of one label of each row, (...), in float32, from logits (..., C) and labels (...).

    - `single_label_classification`: the log-odds log(p / (1 - p)) of the label, which is its logit minus the logsumexp
      of the others. Unlike the probability it does not saturate, and unlike the logit it does not change if all logits
      rise together.
    - `multi_label_classification`: the log-odds of the label, which is its logit.
    - `regression`: the predicted value.

    The temperature of a calibrated classifier is not applied.
    """
    logits, index = logits.float(), targets[..., None]
    chosen = logits.gather(-1, index)[..., 0]
    if problem_type != "single_label_classification" or logits.shape[-1] == 1:
        return chosen
    others: Tensor = logits.scatter(-1, index, -torch.inf).logsumexp(-1)
    return chosen - others


def token_mask(inputs: Inputs) -> Tensor:
    """Return which positions are tokens and not padding, (B, S)."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def in_chunks(function: Callable[[Tensor], None], count: int, inputs: Inputs) -> None:
    """Call `function` on all numbers from 0 to `count` - 1, in chunks of as many rows as a forward pass should have.

    If memory runs out, the chunks get smaller.

    Raises:
        TrainingError: memory is too small for one row.
    """
    ids = inputs["input_ids"]
    tokens = _TOKENS_CPU if ids.device.type == "cpu" else _TOKENS_ACCELERATOR
    size, start = max(1, tokens // ids.shape[1]), 0
    while start < count:
        numbers = torch.arange(start, min(start + size, count), device=ids.device)
        try:
            function(numbers)
            start += len(numbers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            continue
        # Outside `except`, where the error's traceback would keep the tensors of the failed chunk in memory.
        size = halve_rows(len(numbers), "explanations")
