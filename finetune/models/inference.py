"""Logits of new texts: tokenize them and run the model in batches.

W windows of all texts, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune.data.long_text import TRUNCATE, Columns, LongText, TokenLimit
from finetune.data.tokenizer_calls import padding_of, tokenize_in_python
from finetune.errors import DataError
from finetune.models.cpu_kernels import scoring_kernels
from finetune.models.text_batches import EncodedTexts, TextEncoder, check_batch_size, encode_texts, plain_tokenizer
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


def text_encoder(tokenizer: PreTrainedTokenizerBase, max_length: int, long_text: LongText = TRUNCATE) -> TextEncoder:
    """Return the encoder of a tokenizer."""
    limit = TokenLimit(max_length, long_text, tokenizer.truncation_side)
    if tokenizer.is_fast:
        plain = plain_tokenizer(tokenizer.backend_tokenizer)
        plain.encode_special_tokens = tokenizer.split_special_tokens
        encode = partial(encode_texts, plain, limit)
    else:
        encode = partial(_encode_in_python, tokenizer, limit)
    return TextEncoder(encode, padding_of(tokenizer))


def _encode_in_python(tokenizer: PreTrainedTokenizerBase, limit: TokenLimit, columns: Columns) -> EncodedTexts:
    """Return the token ids of texts or of text pairs, from a tokenizer that is written in Python."""
    return EncodedTexts.from_rows(tokenize_in_python(tokenizer, limit, columns))


@torch.no_grad()
def batched_logits(
    model: nn.Module,
    encoder: TextEncoder,
    encoded: EncodedTexts,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the logits (W, C) of all windows in float32, computed in evaluation mode on the model's device.

    Windows of similar length share a batch, longest first, so that little is padded. If memory runs out, the batches
    get smaller. A model in training mode is in evaluation mode during the call only; a model in evaluation mode is not
    changed, so several threads may use it.

    Args:
        on_batch: called after each batch with its number of texts (of first windows).

    Raises:
        DataError: `batch_size` is below 1.
        TrainingError: memory is too small for one text.
    """
    check_batch_size(batch_size)
    order = np.argsort(-encoded.lengths, kind="stable")
    device, was_training = next(model.parameters()).device, model.training
    if was_training:
        model.eval()
    batches: list[Tensor] = []
    try:
        start = 0
        while start < len(order):
            rows = order[start : start + batch_size]
            try:
                inputs = {
                    name: torch.from_numpy(values).to(device) for name, values in encoder.batch(encoded, rows).items()
                }
                with scoring_kernels(model):
                    batches.append(model(**inputs).logits.float())
                start += len(rows)
                if on_batch is not None:
                    on_batch(encoded.count_texts(rows))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                continue
            # Outside `except`, where the error's traceback would keep the tensors of the failed batch in memory.
            batch_size = halve_rows(len(rows), "prediction")
    finally:
        if was_training:
            model.train()
    logits = torch.cat(batches).cpu().numpy()
    result = np.empty_like(logits)
    result[order] = logits
    return result
