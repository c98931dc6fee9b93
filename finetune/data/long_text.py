"""Which tokens of a text the model reads if the text is longer than `max_length`, with tokenizers only.

A window is a sequence of at most `max_length` tokens, with its special tokens. Every row has one window, or several if
the mode is `window`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from tokenizers import Encoding, Tokenizer

from finetune.errors import ModelError

LongTextMode = Literal["truncate", "head_tail", "window"]
WindowPooling = Literal["mean", "max"]
Columns = Sequence[Sequence[str]]

_HEAD_SHARE = 0.25  # of the tokens of head_tail; Sun et al. 2019 keep 128 and 382 of 510 tokens

Parts = tuple[slice, ...]  # the tokens of one text that are kept


@dataclass(frozen=True)
class LongText:
    """How texts longer than `max_length` tokens are read.

    Attributes:
        mode: truncate keeps the first tokens; head_tail keeps the first quarter and the last three quarters of
            `max_length` (Sun et al. 2019, section 5.3.1); window reads the whole text in overlapping windows.
        window_stride: number of tokens that two windows share, at most half a window; None: a quarter of `max_length`.
        window_pooling: how the logits of a text's windows become one: their mean, or the maximum per label.
        max_windows: the largest number of windows per text; the rest of a longer text is not read.
    """

    mode: LongTextMode = "truncate"
    window_stride: int | None = None
    window_pooling: WindowPooling = "max"
    max_windows: int = 16

    def __post_init__(self) -> None:
        if self.mode not in get_args(LongTextMode) or self.window_pooling not in get_args(WindowPooling):
            raise ValueError(f"long_text {self.mode!r}, window_pooling {self.window_pooling!r}")
        if self.window_stride is not None and not (type(self.window_stride) is int and self.window_stride >= 0):
            raise ValueError(f"window_stride {self.window_stride!r}")
        if not (type(self.max_windows) is int and self.max_windows >= 1):
            raise ValueError(f"max_windows {self.max_windows!r}")

    @property
    def windows(self) -> bool:
        """Whether a text can have several windows."""
        return self.mode == "window"

    def stride(self, max_length: int) -> int:
        """Return the number of tokens that two windows of `max_length` tokens share."""
        return max_length // 4 if self.window_stride is None else self.window_stride

    def truncation_note(self, truncated: int, rows: int, max_length: int) -> str:
        """Return the message that the model does not read all tokens of `truncated` of the rows."""
        part = self.read_part(max_length)
        if self.windows:
            return f"{truncated:,} of {rows:,} rows do not fit in {self.max_windows} windows: the model read {part}."
        return f"{truncated:,} of {rows:,} rows are longer than {max_length} tokens: the model read {part}."

    def unread_part(self) -> str:
        """Return which tokens of a truncated row the model does not read, for messages about a recipe."""
        if self.windows:
            return f"do not fit in data.max_windows ({self.max_windows}) windows: the model does not see the rest"
        if self.mode == "head_tail":
            return "are longer than data.max_length: the model does not see their middle"
        return "are longer than data.max_length and are truncated: the model does not see their end"

    def read_part(self, max_length: int) -> str:
        """Return which tokens of a text that is too long the model reads, for messages."""
        if self.windows:
            return f"their first {self.max_windows} windows of {max_length} tokens"
        if self.mode == "head_tail":
            head = int(max_length * _HEAD_SHARE)
            return f"about their first {head} and their last {max_length - head} tokens"
        return f"their first {max_length} tokens"


TRUNCATE = LongText()


def long_text_from(entries: Mapping[str, Any]) -> LongText:
    """Return the settings in a JSON file of a model, under `long_text`; earlier versions wrote none.

    Raises:
        TypeError, ValueError: they are damaged.
    """
    return LongText(**entries.get("long_text", {}))


class Window(NamedTuple):
    """The token ids and the segment ids of a sequence that the model reads."""

    ids: list[int]
    type_ids: list[int]


class TokenizedRow(NamedTuple):
    """A text, or a pair of texts, as the model reads it.

    Attributes:
        windows: one, or several if the mode is `window`.
        true_length: number of tokens before truncation, with special tokens.
        truncated: whether the model does not read all tokens.
    """

    windows: list[Window]
    true_length: int
    truncated: bool


@dataclass(frozen=True)
class TokenLimit:
    """The number of tokens that the model reads, and what is read of a longer text.

    Attributes:
        max_length: the largest number of tokens in a window, with special tokens.
        side: the end at which texts are truncated, right or left.
    """

    max_length: int
    long_text: LongText = TRUNCATE
    side: str = "right"

    def windows(self, first: int, second: int, special: int) -> tuple[list[tuple[Parts, Parts]], bool]:
        """Return what each window keeps of the first and of the second text, and whether tokens are lost.

        Args:
            first, second: number of tokens in each text, without special tokens; 0 if there is no second text. With
                the special tokens they exceed `max_length`.
            special: number of special tokens per window.
        """
        available = max(0, self.max_length - special)
        if self.long_text.windows:
            return self._overlapping(first, second, available)
        kept = longest_first(first, second, available)
        return [(self._keep(first, kept[0]), self._keep(second, kept[1]))], True

    def _overlapping(self, first: int, second: int, available: int) -> tuple[list[tuple[Parts, Parts]], bool]:
        """Return overlapping windows over the longer text, each with the shorter text.

        The shorter text gets at most half of a window. The windows of a single text are those of the tokenizers
        library with a stride; the last one may be shorter.
        """
        shorter, longer = sorted((first, second))
        repeated = min(shorter, available // 2)
        size = available - repeated
        step = max(1, size - min(self.long_text.stride(self.max_length), size // 2))
        starts = range(0, longer - size + step, step)
        kept = self._keep(shorter, repeated)
        parts = [(slice(start, min(start + size, longer)),) for start in starts[: self.long_text.max_windows]]
        truncated = repeated < shorter or len(parts) < len(starts)
        return [(part, kept) if first >= second else (kept, part) for part in parts], truncated

    def _keep(self, length: int, kept: int) -> Parts:
        """Return the parts of a text of `length` tokens that are kept if it gets `kept` tokens."""
        if kept >= length:
            return (slice(0, length),)
        if self.long_text.mode == "head_tail":
            head = int(kept * _HEAD_SHARE)
            return slice(0, head), slice(length - (kept - head), length)
        return (slice(0, kept),) if self.side == "right" else (slice(length - kept, length),)


def longest_first(first: int, second: int, available: int) -> tuple[int, int]:
    """Return how many tokens of a pair's two texts are kept, as the tokenizers library truncates `longest_first`.

    The longer text is truncated first. If both are longer than half of the available tokens, each gets half.

    Args:
        first, second: number of tokens in each text.
        available: number of tokens for both.
    """
    if first + second <= available:
        return first, second
    shorter = min(first, second)
    if shorter <= available // 2:
        return (available - second, second) if first > second else (first, available - first)
    half = available // 2
    return (half, available - half) if first <= second else (available - half, half)


def tokenize_rows(tokenizer: Tokenizer, limit: TokenLimit, columns: Columns) -> list[TokenizedRow]:
    """Return the tokens of texts, or of text pairs, that the model reads.

    Args:
        tokenizer: it neither truncates nor pads.
        columns: one column of texts, or two columns of text pairs.

    Raises:
        ModelError: the tokenizer fails on a text, for example because its unknown token is not in its vocabulary.
    """
    texts = list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))
    try:
        # Not `encode_batch_fast`: it gives both texts of a pair the same segment ids if there is no post-processor.
        encodings = tokenizer.encode_batch(texts)
    except Exception as error:
        # The tokenizers library raises a plain Exception for a text that a tokenizer.json cannot encode.
        if type(error) is not Exception:
            raise
        raise ModelError(
            f"the model's tokenizer cannot read a text: {error}; its tokenizer.json is damaged; replace it with that "
            "of the model"
        ) from error
    return [_tokenized_row(encoding, limit) for encoding in encodings]


def window_positions(texts: Sequence[int | None], limit: TokenLimit) -> tuple[list[list[int]], bool]:
    """Return the positions of the tokens in each window of a row that exceeds the limit, and whether tokens are lost.

    Args:
        texts: for each token 0 or 1, the text of a pair that it belongs to; None for a special token.
    """
    first, second = texts.count(0), texts.count(1)
    starts = texts.index(0) if first else 0, texts.index(1) if second else len(texts)
    windows, truncated = limit.windows(first, second, len(texts) - first - second)

    def positions(parts: tuple[Parts, Parts]) -> list[int]:
        one, two = (
            [position for part in text for position in range(start + part.start, start + part.stop)]
            for start, text in zip(starts, parts, strict=True)
        )
        between, after = range(starts[0] + first, starts[1]), range(starts[1] + second, len(texts))
        return [*range(starts[0]), *one, *between, *two, *after]

    return [positions(parts) for parts in windows], truncated


def _tokenized_row(encoding: Encoding, limit: TokenLimit) -> TokenizedRow:
    """Return the tokens of an encoding that the model reads."""
    ids, type_ids = encoding.ids, encoding.type_ids
    if len(ids) <= limit.max_length:
        return TokenizedRow([Window(ids, type_ids)], len(ids), False)
    positions, truncated = window_positions(encoding.sequence_ids, limit)
    windows = [Window([ids[p] for p in window], [type_ids[p] for p in window]) for window in positions]
    return TokenizedRow(windows, len(ids), truncated)
