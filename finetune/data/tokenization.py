"""Tokenization: the rows of a split as token ids, and the tokenizer of a new model.

N rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import update_fingerprint
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.data.activation_store import RowStates
from finetune.data.row_cache import report_cache_errors
from finetune.data.rows import RawSplit
from finetune.errors import ModelError
from finetune.progress import stage


@dataclass(frozen=True)
class EncodedSplit:
    """A split as token ids.

    Attributes:
        rows: token ids (and segment ids where the tokenizer has them) and `labels`, in Arrow.
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
        lengths: tokens per row after truncation, (N,).
        truncated: fraction of the rows that were truncated to `max_length`.
        texts: the text columns, in Arrow.
        source: the file, data set or recipe key from which the rows were read.
        numbers: the number of each row in that source, counted from 1, (N,).
        states: the cached output of the frozen layers, if it was computed.
        unknown: fraction of the tokens that are the unknown token.
    """

    rows: datasets.Dataset
    labels: np.ndarray
    lengths: np.ndarray
    truncated: float
    texts: datasets.Dataset
    source: str
    numbers: np.ndarray
    states: RowStates | None = None
    unknown: float = 0.0

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
            states=None,
        )


def encode_split(
    raw: RawSplit, labels: np.ndarray, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], max_length: int
) -> EncodedSplit:
    """Return the rows as token ids, truncated to `max_length` tokens, with their labels.

    Raises:
        ModelError: the tokenizer fails on a text, for example because its unknown token is not in its vocabulary.
    """

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        """Return token ids, and per row: length, whether it was truncated, and number of unknown tokens."""
        texts = [batch[name] for name in columns]
        try:
            encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        except Exception as error:
            # The tokenizers library raises a plain Exception for a text that a tokenizer.json cannot encode.
            if type(error) is not Exception:
                raise
            raise ModelError(
                f"the model's tokenizer cannot read the texts of {raw.source}: {error}; its tokenizer.json is damaged; "
                "replace it with that of the model"
            ) from error
        if encoded.encodings is not None:
            truncated = [bool(encoding.overflowing) for encoding in encoded.encodings]
        else:
            full = tokenizer(*texts, truncation=False, return_attention_mask=False, verbose=False)
            truncated = [len(ids) > max_length for ids in full["input_ids"]]
        lengths = [len(ids) for ids in encoded["input_ids"]]
        unknown = [ids.count(tokenizer.unk_token_id) for ids in encoded["input_ids"]]
        return {**encoded, "length": lengths, "truncated": truncated, "unknown": unknown}

    texts = raw.rows.select_columns(list(columns))
    with report_cache_errors(), stage(f"tokenizing {raw.source}", total=len(texts)) as running:

        def tokenize_and_show(batch: dict[str, list[str]]) -> dict[str, Any]:
            running.advance(len(batch[columns[0]]))
            return tokenize(batch)

        # The fingerprint, which identifies the cached token ids, must not depend on the progress display.
        fingerprint = update_fingerprint(texts._fingerprint, tokenize, {"columns": list(columns)})
        encoded = texts.map(tokenize_and_show, batched=True, remove_columns=list(columns), new_fingerprint=fingerprint)
    lengths, truncated, unknown = (encoded.data[name].to_numpy() for name in ("length", "truncated", "unknown"))
    rows = encoded.remove_columns(["length", "truncated", "unknown"]).add_column("labels", as_arrow(labels))
    return EncodedSplit(
        rows,
        labels,
        lengths,
        truncated=float(truncated.mean()),
        texts=texts,
        source=raw.source,
        numbers=raw.row_numbers(),
        unknown=float(unknown.sum() / max(1, lengths.sum())),
    )


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
