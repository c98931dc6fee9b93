from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split, word_tokenizer
from finetune.errors import ModelError
from tests.conftest import SENTENCES


def raw(**columns: list[str]) -> RawSplit:
    return RawSplit(datasets.Dataset.from_dict(columns), "here")


def test_unknown_words_get_the_unknown_token() -> None:
    tokenizer = word_tokenizer(raw(sentence=SENTENCES).rows, 8)
    assert len(tokenizer) == 8
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["[PAD]", "[UNK]", "the"]
    ids = tokenizer("The zebra, the cat").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["the", "[UNK]", "[UNK]", "the", "cat"]


def test_a_tokenizer_without_its_unknown_token_gives_one_error_message() -> None:
    words = Tokenizer(models.WordLevel({"the": 0, "[PAD]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    message = r"here: the model's tokenizer cannot read a text: .*Missing \[UNK\] token.*; its tokenizer.json is dam"
    with pytest.raises(ModelError, match=message):
        encode_split(raw(sentence=["the cat"]), np.arange(1), tokenizer, ["sentence"], 6)


def test_truncation_is_counted_and_nothing_else_changed(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    split = encode_split(raw(sentence=SENTENCES), np.arange(6), tokenizer, ["sentence"], 6)
    assert split.lengths.tolist() == [6, 5, 6, 4, 3, 6]
    assert split.truncated == pytest.approx(1 / 6)
    assert split.true_lengths.tolist() == [len(ids) for ids in tokenizer(SENTENCES).input_ids]
    assert split.select(np.array([5, 0])).true_lengths.tolist() == [split.true_lengths[5], 6]
    assert split.rows["input_ids"][0] == tokenizer(SENTENCES[0]).input_ids
    assert split.rows["labels"][:] == list(range(6))
    assert split.texts["sentence"][:] == SENTENCES
    assert len(split) == 6


def test_pairs_are_encoded_together(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    split = encode_split(raw(a=["the cat"], b=["a dog sat"]), np.array([1]), tokenizer, ["a", "b"], 16)
    assert split.rows["input_ids"][0] == tokenizer("the cat", "a dog sat").input_ids
    assert split.lengths.tolist() == [5]


def test_labels_are_added_without_creating_python_objects(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sets = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0], [1, 0, 0]])
    columns, add = [], datasets.Dataset.add_column
    monkeypatch.setattr(
        datasets.Dataset, "add_column", lambda self, name, column: columns.append(column) or add(self, name, column)
    )
    for labels in (np.arange(6), np.linspace(0, 1, 6), sets):
        split = encode_split(raw(sentence=SENTENCES), labels, tokenizer, ["sentence"], 6)
        assert split.rows["labels"][:] == labels.tolist()
    assert [type(column).__module__.split(".")[0] for column in columns] == ["pyarrow"] * 3
