"""Predictions for new texts: tokenize them, run the model in batches, name the labels.

N texts, C classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune.errors import DataError
from finetune.models.losses import decisions, probabilities
from finetune.out_of_memory import halve_rows, is_out_of_memory

Texts = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one text, or for one pair of texts.

    Attributes:
        label: the label's name; a tuple of names for `multi_label_classification`; the value for `regression`.
        probabilities: label name to probability, 0 to 1. They sum to 1 for `single_label_classification`, are
            independent of each other for `multi_label_classification`, and there are none for `regression`.
    """

    label: str | tuple[str, ...] | float
    probabilities: dict[str, float]


def as_columns(texts: Texts) -> list[list[str]]:
    """Return texts as one column, or pairs of texts as two.

    Raises:
        DataError: they are neither a list of strings nor a list of pairs of strings.
    """
    if isinstance(texts, str):
        raise DataError(f"predict takes a list of texts, but got the string {texts[:40]!r}; write predict([text])")
    pairs = [isinstance(text, tuple | list) for text in texts]
    for index, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        parts = text if pair else (text,)
        if len(parts) != 1 + pairs[0] or pair != pairs[0] or not all(isinstance(part, str) for part in parts):
            expected = "a pair of strings, as the first item is" if pairs[0] else "a string, as a text must be"
            raise DataError(f"item {index} of the texts is {str(text)[:60]!r}; it must be {expected}")
    return [list(column) for column in zip(*texts, strict=True)] if any(pairs) else [list(map(str, texts))]


@torch.no_grad()
def batched_logits(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, columns: list[list[str]], *, max_length: int, batch_size: int
) -> Tensor:
    """Return the logits (N, C) of the texts in float32 on the CPU, computed in evaluation mode on the model's device.

    Texts of similar length share a batch, so that little is padded. If memory runs out, the batches get smaller.

    Raises:
        TrainingError: memory is too small for one text.
    """
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])
    order = lengths.argsort(stable=True)
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    batches: list[Tensor] = []
    try:
        start = 0
        while start < len(order):
            rows = order[start : start + batch_size].tolist()
            batch = {name: [values[row] for row in rows] for name, values in encoded.items()}
            try:
                inputs = tokenizer.pad(batch, return_tensors="pt").to(device)
                batches.append(model(**inputs).logits.float().cpu())
                start += len(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                continue
            # Outside `except`, where the error's traceback would keep the tensors of the failed batch in memory.
            batch_size = halve_rows(len(rows), "prediction")
    finally:
        model.train(was_training)
    return torch.cat(batches)[order.argsort()]


def as_predictions(logits: Tensor, label_names: Sequence[str], problem_type: str) -> list[Prediction]:
    """Return one prediction per row of the logits (N, C)."""
    decided = decisions(logits, problem_type).tolist()
    if problem_type == "regression":
        return [Prediction(value, {}) for value in decided]
    by_label = [dict(zip(label_names, row, strict=True)) for row in probabilities(logits, problem_type).tolist()]
    if problem_type == "multi_label_classification":
        labels = [tuple(name for name, chosen in zip(label_names, row, strict=True) if chosen) for row in decided]
        return [Prediction(names, row) for names, row in zip(labels, by_label, strict=True)]
    return [Prediction(label_names[index], row) for index, row in zip(decided, by_label, strict=True)]
