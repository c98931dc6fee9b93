from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from finetune.data.long_text import LongText, TokenLimit, longest_first, tokenize_rows

WORDS = 40
PREFIXES = {0: "a", 1: "b"}  # of the words of the first and of the second text


def word_level(*, special: bool) -> Tokenizer:
    """Return a tokenizer of the words a0 to a39 and b0 to b39, with special tokens and segment ids if `special`."""
    names = ["[CLS]", "[SEP]", *(f"{prefix}{word}" for prefix, word in product("ab", range(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[CLS]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
        )
    return tokenizer


TOKENIZERS = {special: word_level(special=special) for special in (False, True)}


def text(length: int, prefix: str = "a") -> str:
    return " ".join(f"{prefix}{word}" for word in range(length))


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, WORDS), min_size=1, max_size=2),
    max_length=st.integers(4, 24),
    side=st.sampled_from(["right", "left"]),
    special=st.booleans(),
)
def test_truncated_texts_are_those_of_the_tokenizers_library(
    lengths: list[int], max_length: int, side: str, special: bool
) -> None:
    tokenizer = TOKENIZERS[special]
    columns = [[text(length, PREFIXES[index])] for index, length in enumerate(lengths)]
    (row,) = tokenize_rows(tokenizer, TokenLimit(max_length, side=side), columns)
    full = tokenizer.encode(*(column[0] for column in columns))
    expected = Tokenizer.from_str(tokenizer.to_str())
    expected.enable_truncation(max_length, direction=side)
    encoding = expected.encode(*(column[0] for column in columns))
    assert row.windows == [(encoding.ids, encoding.type_ids)]
    assert row.true_length == len(full.ids)
    assert row.truncated == (len(full.ids) > max_length)


@settings(max_examples=40)
@given(length=st.integers(0, WORDS), max_length=st.integers(6, 24), stride=st.integers(0, 2), special=st.booleans())
def test_windows_of_one_text_are_those_of_the_tokenizers_library(
    length: int, max_length: int, stride: int, special: bool
) -> None:
    tokenizer = TOKENIZERS[special]
    limit = TokenLimit(max_length, LongText("window", stride, max_windows=WORDS))
    (row,) = tokenize_rows(tokenizer, limit, [[text(length)]])
    expected = Tokenizer.from_str(tokenizer.to_str())
    expected.enable_truncation(max_length, stride=stride)
    encoding = expected.encode(text(length))
    assert [window.ids for window in row.windows] == [part.ids for part in (encoding, *encoding.overflowing)]
    assert [window.type_ids for window in row.windows] == [part.type_ids for part in (encoding, *encoding.overflowing)]
    assert not row.truncated


# Words of the first and of the second text, with 20 tokens for both -> what is kept of each.
SHARES = {
    "both fit": ((8, 12), (8, 12)),
    "a short first text keeps all its words": ((4, 300), (4, 16)),
    "a short second text keeps all its words": ((300, 4), (16, 4)),
    "two long texts get half each": ((300, 40), (10, 10)),
    "two long texts get half each, in the other order": ((40, 300), (10, 10)),
    "just above half": ((11, 300), (10, 10)),
    "an empty text leaves all tokens to the other": ((0, 300), (0, 20)),
}


@pytest.mark.parametrize(("lengths", "kept"), SHARES.values(), ids=SHARES)
def test_a_pair_shares_the_tokens_fairly(lengths: tuple[int, int], kept: tuple[int, int]) -> None:
    assert longest_first(*lengths, 20) == kept


def words(ids: list[int]) -> list[str]:
    return [word for word in TOKENIZERS[True].decode(ids).split() if not word.startswith("[")]


def windows_of(limit: TokenLimit, *lengths: int) -> list[list[str]]:
    """Return the words of each window of a text or pair with these numbers of words."""
    columns = [[text(length, PREFIXES[index])] for index, length in enumerate(lengths)]
    (row,) = tokenize_rows(TOKENIZERS[True], limit, columns)
    return [words(window.ids) for window in row.windows]


def test_head_tail_keeps_the_first_quarter_and_the_last_three() -> None:
    limit = TokenLimit(10, LongText("head_tail"), side="left")  # 8 without special tokens
    assert windows_of(limit, 30) == [[*text(2).split(), *text(30).split()[-6:]]]
    assert windows_of(limit, 8) == [text(8).split()]


def test_head_tail_of_a_pair_cuts_each_text_in_its_middle() -> None:
    limit = TokenLimit(19, LongText("head_tail"))  # 16 without special tokens, 8 for each text
    second = text(40, "b").split()
    assert windows_of(limit, 30, 40) == [["a0", "a1", *text(30).split()[-6:], *second[:2], *second[-6:]]]
    assert windows_of(limit, 4, 40) == [[*text(4).split(), *second[:3], *second[-9:]]]


@pytest.mark.parametrize("swapped", [False, True])
def test_windows_of_a_pair_repeat_the_shorter_text(swapped: bool) -> None:
    limit = TokenLimit(19, LongText("window", 2))  # 16 without special tokens
    lengths, prefixes = ((40, 6), ("b", "a")) if swapped else ((6, 40), ("a", "b"))
    short, long = text(6, prefixes[0]).split(), text(40, prefixes[1]).split()
    windows = windows_of(limit, *lengths)
    assert [[word for word in window if word in short] for window in windows] == [short] * len(windows)
    parts = [[word for word in window if word in long] for window in windows]
    assert parts == [long[start : start + 10] for start in range(0, 40, 8)]


def test_two_long_texts_of_a_pair_get_half_of_each_window() -> None:
    limit = TokenLimit(19, LongText("window", 2))
    (row,) = tokenize_rows(TOKENIZERS[True], limit, [[text(20)], [text(30, "b")]])
    assert row.truncated  # of the first text, all windows hold the first 8 words
    assert {sum(word in text(20).split() for word in words(window.ids)) for window in row.windows} == {8}
    assert {word for window in row.windows for word in words(window.ids)} >= set(text(30, "b").split())


def test_at_most_max_windows_are_read() -> None:
    whole = TokenLimit(10, LongText("window", 2, max_windows=6))
    capped = TokenLimit(10, LongText("window", 2, max_windows=3))
    assert windows_of(capped, 38) == windows_of(whole, 38)[:3]
    rows = tokenize_rows(TOKENIZERS[True], capped, [[text(38), text(20), text(5)]])
    assert [row.truncated for row in rows] == [True, False, False]
    assert [row.true_length for row in rows] == [40, 22, 7]
    assert np.sum([len(row.windows) for row in rows]) == 3 + 3 + 1
