"""Calls of a transformers tokenizer: how it pads, and the token ids of one that is written in Python.

Apart from tokenization.py, so that a model can be loaded for prediction without the `datasets` library.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from finetune.data.long_text import Columns, TokenizedRow, TokenLimit, Window
from finetune.data.padding import Padding


def padding_of(tokenizer: PreTrainedTokenizerBase) -> Padding:
    """Return how the tokenizer pads a batch."""
    return Padding(
        tuple(tokenizer.model_input_names),
        tokenizer.pad_token_id,
        tokenizer.pad_token_type_id,
        tokenizer.padding_side == "left",
    )


def tokenize_in_python(tokenizer: PreTrainedTokenizerBase, limit: TokenLimit, columns: Columns) -> list[TokenizedRow]:
    """Return what `tokenize_rows` returns, from a tokenizer that is written in Python."""
    ids = [
        tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for texts in columns
    ]
    special = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
    return [_tokenized_in_python(tokenizer, limit, texts, special) for texts in zip(*ids, strict=True)]


def _tokenized_in_python(
    tokenizer: PreTrainedTokenizerBase, limit: TokenLimit, texts: Sequence[list[int]], special: int
) -> TokenizedRow:
    """Return a row of one text or of two.

    Args:
        texts: the token ids of each, without special tokens.
        special: number of special tokens.
    """
    length = sum(map(len, texts)) + special
    windows, truncated = [tuple(texts)], length > limit.max_length
    if truncated and limit.long_text.mode != "truncate":
        first, second = (*map(len, texts), 0)[:2]
        parts, truncated = limit.windows(first, second, special)
        windows = [
            tuple([token for part in kept for token in text[part]] for text, kept in zip(texts, window, strict=False))
            for window in parts
        ]
    # Its own truncation differs by one token from that of the tokenizers library, for two texts of equal length.
    encoded = [
        tokenizer.prepare_for_model(
            *window,
            truncation=True,
            max_length=limit.max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        for window in windows
    ]
    return TokenizedRow([Window(item["input_ids"], item["token_type_ids"]) for item in encoded], length, truncated)
