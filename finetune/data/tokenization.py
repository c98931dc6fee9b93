"""Tokenization: the rows of a split as token ids, and the tokenizer of a new model.

N rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import update_fingerprint
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.data.activation_store import RowStates
from finetune.data.long_text import TRUNCATE, Columns, LongText, TokenizedRow, TokenLimit, tokenize_rows
from finetune.data.row_cache import report_cache_errors
from finetune.data.rows import RawSplit
from finetune.data.token_rows import WINDOWS
from finetune.data.tokenizer_calls import tokenize_in_python
from finetune.errors import ModelError
from finetune.progress import stage

_FORMAT = 1  # of the cached rows; raise it when long_text.py returns other tokens


@dataclass(frozen=True)
class EncodedSplit:
    """A split as token ids.

    Attributes:
        rows: token ids (and segment ids where the tokenizer has them) and `labels`, in Arrow. If long texts are read
            in windows, the token ids of a row are those of all its windows, and `windows` has their lengths.
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
        lengths: tokens per row that the model reads, in all windows, (N,).
        truncated: fraction of the rows of which the model does not read all tokens.
        texts: the text columns, in Arrow.
        source: the file, data set or recipe key from which the rows were read.
        numbers: the number of each row in that source, counted from 1, (N,).
        true_lengths: tokens per row before truncation, with special tokens, (N,).
        states: the cached output of the frozen layers, if it was computed.
        unknown: fraction of the tokens that are the unknown token.
        windows: number of windows per row, (N,); None: one each.
    """

    rows: datasets.Dataset
    labels: np.ndarray
    lengths: np.ndarray
    truncated: float
    texts: datasets.Dataset
    source: str
    numbers: np.ndarray
    true_lengths: np.ndarray
    states: RowStates | None = None
    unknown: float = 0.0
    windows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, positions: np.ndarray) -> EncodedSplit:
        """Return the split with only the rows at these positions, counted from 0, and without cached states."""
        return replace(
            self,
            rows=self.rows.select(positions),
            labels=self.labels[positions],
            lengths=self.lengths[positions],
            texts=self.texts.select(positions),
            numbers=self.numbers[positions],
            true_lengths=self.true_lengths[positions],
            states=None,
            windows=None if self.windows is None else self.windows[positions],
        )


def encode_split(
    raw: RawSplit,
    labels: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    max_length: int,
    long_text: LongText = TRUNCATE,
) -> EncodedSplit:
    """Return the rows as token ids, with their labels.

    Args:
        max_length: the largest number of tokens that the model reads at a time.
        long_text: how longer rows are read.

    Raises:
        ModelError: the tokenizer fails on a text, for example because its unknown token is not in its vocabulary.
    """
    read_rows = row_tokenizer(tokenizer, max_length, long_text)
    has_type_ids, unknown_id = "token_type_ids" in tokenizer.model_input_names, tokenizer.unk_token_id

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        columns_of_rows = _as_columns(read_rows([batch[name] for name in columns]), unknown_id)
        unused = {name for name, used in (("token_type_ids", has_type_ids), (WINDOWS, long_text.windows)) if not used}
        return {name: values for name, values in columns_of_rows.items() if name not in unused}

    texts = raw.rows.select_columns(list(columns))
    with report_cache_errors(), stage(f"tokenizing {raw.source}", total=len(texts)) as running:

        def tokenize_and_show(batch: dict[str, list[str]]) -> dict[str, Any]:
            running.advance(len(batch[columns[0]]))
            return tokenize(batch)

        # The fingerprint, which identifies the cached token ids, must not depend on the progress display.
        fingerprint = update_fingerprint(texts._fingerprint, tokenize, {"columns": list(columns), "format": _FORMAT})
        try:
            encoded = texts.map(
                tokenize_and_show, batched=True, remove_columns=list(columns), new_fingerprint=fingerprint
            )
        except ModelError as error:
            raise ModelError(f"{raw.source}: {error}") from error
    per_row = {name: encoded.data[name].to_numpy() for name in ("length", "true_length", "truncated", "unknown")}
    rows = encoded.remove_columns(list(per_row)).add_column("labels", as_arrow(labels))
    return EncodedSplit(
        rows,
        labels,
        per_row["length"],
        truncated=float(per_row["truncated"].mean()),
        texts=texts,
        source=raw.source,
        numbers=raw.row_numbers(),
        true_lengths=per_row["true_length"],
        unknown=float(per_row["unknown"].sum() / max(1, per_row["length"].sum())),
        windows=np.diff(rows.data[WINDOWS].combine_chunks().offsets.to_numpy()) if long_text.windows else None,
    )


def _as_columns(rows: Sequence[TokenizedRow], unknown_id: Any) -> dict[str, list[Any]]:
    """Return the tokens of rows as columns, and per row: lengths, whether it is truncated, number of unknown tokens."""
    ids = [list(chain.from_iterable(window.ids for window in row.windows)) for row in rows]
    return {
        "input_ids": ids,
        "token_type_ids": [list(chain.from_iterable(window.type_ids for window in row.windows)) for row in rows],
        WINDOWS: [[len(window.ids) for window in row.windows] for row in rows],
        "length": [len(row) for row in ids],
        "true_length": [row.true_length for row in rows],
        "truncated": [row.truncated for row in rows],
        "unknown": [row.count(unknown_id) for row in ids],
    }


def row_tokenizer(
    tokenizer: PreTrainedTokenizerBase, max_length: int, long_text: LongText = TRUNCATE
) -> Callable[[Columns], list[TokenizedRow]]:
    """Return the function that turns columns of texts into the tokens that the model reads.

    A tokenizer of the tokenizers library is set to neither truncate nor pad.
    """
    limit = TokenLimit(max_length, long_text, tokenizer.truncation_side)
    if not tokenizer.is_fast:
        return partial(tokenize_in_python, tokenizer, limit)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return partial(tokenize_rows, backend, limit)


def as_arrow(values: np.ndarray) -> pa.Array:
    """Return values (N,) or (N, C) as an Arrow array of numbers or lists, without a Python object per row."""
    if values.ndim == 1:
        return pa.array(values)
    ends = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.reshape(-1)))


def word_tokenizer(texts: datasets.Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of the most frequent lowercase words; all other words are `[UNK]`.

    Args:
        texts: rows with text columns only.
        vocab_size: maximum number of words, including `[PAD]` (id 0) and `[UNK]` (id 1).
    """
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    words.train_from_iterator((text for name in texts.column_names for text in texts[name]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )
