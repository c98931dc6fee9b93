"""Rows whose text is almost that of another row: finetune/data/near_duplicates.py."""

from __future__ import annotations

import random

import pytest

from finetune.data.near_duplicates import SIMILARITY, near_duplicates

WORDS = [f"{first}{second}{last}" for first in "bdgklmn" for second in "aeiou" for last in ("rt", "st", "lk", "mp")]


@pytest.mark.parametrize(
    ("text", "other", "is_near"),
    [
        ("what are the fees for topping up my account", "what are the fees for topping up my accounts", True),
        ("how do i cancel my transfer to another bank", "how do i cancel my transfer to a different bank", False),
        ("where is the nearest bank", "my card was stolen yesterday", False),
        ("", "a", False),
        ("a", "a", True),
    ],
)
def test_two_texts(text: str, other: str, is_near: bool) -> None:
    assert near_duplicates([text], [other]) == ({0: 0} if is_near else {})


def similarity(one: str, other: str) -> float:
    first, second = ({f" {text} "[start : start + 4] for start in range(len(text) - 1)} for text in (one, other))
    return len(first & second) / len(first | second)


def test_the_index_finds_what_a_comparison_of_all_pairs_finds() -> None:
    draw = random.Random(3)
    others = [" ".join(draw.choices(WORDS, k=12)) for _ in range(150)]
    texts = []
    for text in others[:60]:
        words = text.split()
        for _ in range(draw.choice((1, 1, 2, 3))):
            words[draw.randrange(12)] = draw.choice(WORDS)
        texts.append(" ".join(words))
    expected = {
        position: max(range(len(others)), key=lambda other: similarity(text, others[other]))
        for position, text in enumerate(texts)
        if max(similarity(text, other) for other in others) >= SIMILARITY
    }
    assert 10 < len(expected) < 60
    assert near_duplicates(texts, others) == expected
    assert near_duplicates(texts, []) == {}
