"""Token ids of many texts, and padded batches of them, with numpy and tokenizers only.

N texts, W windows of all texts (one per text, unless long texts are read in windows), B batch, S tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from finetune.data.long_text import Columns, TokenizedRow, TokenLimit, tokenize_rows
from finetune.data.padding import Padding
from finetune.errors import DataError


@dataclass(frozen=True)
class EncodedTexts:
    """The token ids of N texts, one after the other, without padding.

    Attributes:
        ids: the token ids of all windows of all texts.
        type_ids: their segment ids, 0 and 1 for the first and second text of a pair.
        starts: position of the first token of each window, and the end of the last window, (W + 1,).
        first_windows: number of the first window of each text, and the number of windows, (N + 1,).
        truncated: number of texts of which the model does not read all tokens.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    starts: np.ndarray
    first_windows: np.ndarray
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per window, (W,)."""
        return np.diff(self.starts)

    @property
    def text_lengths(self) -> np.ndarray:
        """Tokens per text in all its windows, (N,)."""
        return np.diff(self.starts[self.first_windows])

    @property
    def window_counts(self) -> np.ndarray:
        """Windows per text, (N,)."""
        return np.diff(self.first_windows)

    def pool(self, logits: np.ndarray, pooling: str) -> np.ndarray:
        """Return the logits (N, C) of the texts from those of their windows (W, C); pooling is mean or max."""
        counts = self.window_counts
        if (counts == 1).all():
            return logits
        first = self.first_windows[:-1]
        if pooling == "max":
            return np.asarray(np.maximum.reduceat(logits, first))
        return np.asarray(np.add.reduceat(logits, first) / counts[:, None].astype(logits.dtype))

    def count_texts(self, windows: np.ndarray) -> int:
        """Return how many of these windows are the first of a text."""
        return int(np.isin(windows, self.first_windows[:-1]).sum())

    @classmethod
    def from_rows(cls, rows: Sequence[TokenizedRow]) -> EncodedTexts:
        """Return the token ids of tokenized rows."""
        windows = [window for row in rows for window in row.windows]
        starts = np.concatenate([[0], np.cumsum([len(window.ids) for window in windows], dtype=np.int64)])
        ids, type_ids = (
            np.fromiter(chain.from_iterable(lists), np.int64, int(starts[-1]))
            for lists in ((window.ids for window in windows), (window.type_ids for window in windows))
        )
        first_windows = np.concatenate([[0], np.cumsum([len(row.windows) for row in rows], dtype=np.int64)])
        return cls(ids, type_ids, starts, first_windows, sum(row.truncated for row in rows))


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into token ids, and token ids into padded batches. Several threads may use it at the same time.

    Attributes:
        encode: returns the token ids of one column of texts, or of two columns of text pairs; see `encode_texts`.
        padding: how the token ids are padded.
    """

    encode: Callable[[Columns], EncodedTexts]
    padding: Padding

    def batch(self, encoded: EncodedTexts, windows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the model inputs (B, S) of the windows with these numbers, padded to the longest of them."""
        starts = encoded.starts[windows]
        lengths = encoded.starts[windows + 1] - starts
        return self.padding.batch(lengths, (encoded.ids, starts), (encoded.type_ids, starts))


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
