"""Turn rows into token ids, once, and say what was cut off.

N rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.data.activation_store import RowStates
from finetune.data.row_cache import cache_written
from finetune.data.rows import RawSplit
from finetune.errors import ModelError


@dataclass(frozen=True)
class EncodedSplit:
    """A split ready for the model.

    Attributes:
        rows: token ids (and segment ids where the tokenizer has them) and `labels`, in Arrow.
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
        lengths: tokens a row after truncation, (N,).
        truncated: share of the rows that were cut to `max_length`.
        texts: the columns shown to people, in Arrow.
        where: the file, data set or recipe key that the rows come from.
        numbers: the rows' numbers there, from 1, (N,).
        states: what the model's frozen lower part makes of the rows, if that was computed beforehand.
        unknown: share of the tokens that are the tokenizer's unknown token.
    """

    rows: datasets.Dataset
    labels: np.ndarray
    lengths: np.ndarray
    truncated: float
    texts: datasets.Dataset
    where: str
    numbers: np.ndarray
    states: RowStates | None = None
    unknown: float = 0.0

    def __len__(self) -> int:
        return len(self.lengths)


def encode_split(
    raw: RawSplit, labels: np.ndarray, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], max_length: int
) -> EncodedSplit:
    """Return the split's rows as token ids, cut to `max_length` tokens, with their labels.

    Raises:
        ModelError: the tokenizer fails on a text, as one does that lacks its own token for unknown words.
    """

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        """Return token ids of a batch of rows, their number, whether some were cut off, and how many are unknown."""
        texts = [batch[name] for name in columns]
        try:
            encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        except Exception as error:
            # The tokenizers library has no class of its own for what a tokenizer.json cannot do with a text.
            if type(error) is not Exception:
                raise
            raise ModelError(
                f"the model's tokenizer cannot read the texts of {raw.where}: {error}; its tokenizer.json is damaged, "
                "so put the one there that belongs to the model"
            ) from error
        if encoded.encodings is not None:
            cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        else:
            whole = tokenizer(*texts, truncation=False, return_attention_mask=False, verbose=False)
            cut = [len(ids) > max_length for ids in whole["input_ids"]]
        lengths = [len(ids) for ids in encoded["input_ids"]]
        unknown = [ids.count(tokenizer.unk_token_id) for ids in encoded["input_ids"]]
        return {**encoded, "length": lengths, "cut": cut, "unknown": unknown}

    texts = raw.rows.select_columns(list(columns))
    with cache_written():
        encoded = texts.map(tokenize, batched=True, remove_columns=list(columns))
    lengths, cut, unknown = (encoded.data[name].to_numpy() for name in ("length", "cut", "unknown"))
    rows = encoded.remove_columns(["length", "cut", "unknown"]).add_column("labels", as_arrow(labels))
    share = float(unknown.sum() / max(1, lengths.sum()))
    return EncodedSplit(rows, labels, lengths, float(cut.mean()), texts, raw.where, raw.row_numbers(), unknown=share)


def as_arrow(values: np.ndarray) -> pa.Array:
    """Return values, one a row (N,) or a list a row (N, C), without a Python object for each row."""
    if values.ndim == 1:
        return pa.array(values)
    ends = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.reshape(-1)))


def word_tokenizer(texts: datasets.Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the most frequent lower-cased words, one id a word, `[UNK]` for all others.

    Args:
        texts: rows whose columns are all text.
        vocab_size: words at most, `[PAD]` (id 0) and `[UNK]` (id 1) included.
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
