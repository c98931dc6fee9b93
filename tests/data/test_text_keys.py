"""Rows with the same text, apart from case, punctuation, white space and Unicode form: finetune/data/text_keys.py."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pytest

from finetune.data import text_keys
from finetune.data.rows import RawSplit

SAME = [
    ("It works.", "it  WORKS !"),
    ("caf\u00e9 au lait", "Cafe\u0301 au lait"),
    ("\uff21\uff22\uff23 \u00bd", "abc 1\u20442"),
    ("up $ 5", "up 5"),
    ("don't", "don t"),
    ("`` so ''", "so"),
]
DIFFERENT = [
    ("dont", "don t"),
    (":)", ":("),
    ("good \U0001f600", "good \U0001f621"),
    ("\u4e2d\u6587", "\u4e2d\u6587\u5b57"),
    ("5", "6"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_these_texts_are_the_same(one: str, other: str) -> None:
    first, second = text_keys.fold_texts(pa.array([one, other])).to_pylist()
    assert first == second


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_these_texts_differ(one: str, other: str) -> None:
    first, second = text_keys.fold_texts(pa.array([one, other])).to_pylist()
    assert first != second


def test_the_key_of_a_pair_is_that_of_both_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": ["One", "one.", "one", "one two"], "b": ["two", "TWO", "three", ""]}
    split = RawSplit(datasets.Dataset.from_dict(rows), "rows")
    keys = text_keys.text_keys(split, ["a", "b"])
    assert len(keys) == 4
    assert len(set(keys.tolist())) == 3
    assert keys[0] == keys[1]
    assert len(set(text_keys.text_keys(split, ["a"]).tolist())) == 2
    sizes = []
    fold = text_keys.fold_texts
    monkeypatch.setattr(text_keys, "fold_texts", lambda texts: sizes.append(len(texts)) or fold(texts))
    monkeypatch.setattr(text_keys, "_BLOCK_ROWS", 3)
    assert text_keys.text_keys(split, ["a", "b"]).tolist() == keys.tolist()
    assert sizes == [3, 3, 1, 1]  # the maximum number of texts in memory
