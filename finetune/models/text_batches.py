"""Token ids of many texts, and padded batches of them, with numpy and tokenizers only.

N texts, B batch, S tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from finetune.data.long_text import Columns, TokenizedRow, TokenLimit, tokenize_rows
from finetune.errors import DataError


@dataclass(frozen=True)
class EncodedTexts:
    """The token ids of N texts, one after the other, without padding.

    Attributes:
        ids: the token ids of all texts.
        type_ids: their segment ids, 0 and 1 for the first and second text of a pair.
        starts: position of the first token of each text, and the end of the last text, (N + 1,).
        truncated: number of texts that were longer than the maximum length.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    starts: np.ndarray
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, (N,)."""
        return np.diff(self.starts)

    @classmethod
    def from_rows(cls, rows: Sequence[TokenizedRow]) -> EncodedTexts:
        """Return the token ids of tokenized rows."""
        windows = [window for row in rows for window in row.windows]
        starts = np.concatenate([[0], np.cumsum([len(window.ids) for window in windows], dtype=np.int64)])
        ids, type_ids = (
            np.fromiter(chain.from_iterable(lists), np.int64, int(starts[-1]))
            for lists in ((window.ids for window in windows), (window.type_ids for window in windows))
        )
        return cls(ids, type_ids, starts, sum(row.truncated for row in rows))


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into token ids, and token ids into padded batches. Several threads may use it at the same time.

    Attributes:
        encode: returns the token ids of one column of texts, or of two columns of text pairs; see `encode_texts`.
        input_names: the model inputs: input_ids, and attention_mask and token_type_ids if the model reads them.
        pad_id, pad_type_id: the token id and the segment id of padding.
        pad_left: whether padding comes before the tokens.
    """

    encode: Callable[[Columns], EncodedTexts]
    input_names: tuple[str, ...]
    pad_id: int = 0
    pad_type_id: int = 0
    pad_left: bool = False

    def batch(self, encoded: EncodedTexts, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the model inputs (B, S) of the texts with these numbers, padded to the longest of them."""
        lengths = encoded.lengths[rows][:, None]
        positions = np.arange(lengths.max(initial=1))[None] - (lengths.max(initial=1) - lengths if self.pad_left else 0)
        mask = (positions >= 0) & (positions < lengths)
        tokens = np.where(mask, encoded.starts[rows][:, None] + positions, 0)
        inputs = {"input_ids": np.where(mask, encoded.ids[tokens], self.pad_id)}
        if "token_type_ids" in self.input_names:
            inputs["token_type_ids"] = np.where(mask, encoded.type_ids[tokens], self.pad_type_id)
        if "attention_mask" in self.input_names:
            inputs["attention_mask"] = mask.astype(np.int64)
        return inputs


def check_batch_size(batch_size: int) -> None:
    """Raise DataError unless a batch has at least one text."""
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")


def encode_texts(tokenizer: Tokenizer, limit: TokenLimit, columns: Columns) -> EncodedTexts:
    """Return the token ids of texts or of text pairs.

    Args:
        tokenizer: it neither truncates nor pads; see `plain_tokenizer`.

    Raises:
        ModelError: the tokenizer fails on a text, for example because its unknown token is not in its vocabulary.
    """
    return EncodedTexts.from_rows(tokenize_rows(tokenizer, limit, columns))


def plain_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy of the tokenizer that neither truncates nor pads.

    A copy, because a tokenizer's settings must not change while another thread uses it.
    """
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.no_padding()
    copied.no_truncation()
    return copied


def truncating_tokenizer(tokenizer: Tokenizer, max_length: int, *, truncation_side: str = "right") -> Tokenizer:
    """Return a copy of the tokenizer that truncates to `max_length` tokens and does not pad.

    A copy, because a tokenizer's settings must not change while another thread uses it. Of a pair, the longer text is
    truncated first.
    """
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.no_padding()
    copied.enable_truncation(max_length, strategy="longest_first", direction=truncation_side)
    return copied
