"""Logits of new texts: tokenize them and run the model in batches.

N texts, C classes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune.errors import DataError
from finetune.out_of_memory import halve_rows, is_out_of_memory

Texts = Sequence[str] | Sequence[tuple[str, str]]


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
