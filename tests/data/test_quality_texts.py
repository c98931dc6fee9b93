"""Repeated, conflicting, shared and unusual texts: finetune/data/quality_texts.py."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import pytest

from finetune.data.quality_texts import SplitTexts, text_findings
from finetune.data.rows import RawSplit
from finetune.runs.data_quality import NOTE, WARNING, Finding

FILLER = [
    f"{one} {two} {one}{two}" for one in ("sun", "rain", "snow", "wind", "fog") for two in ("hat", "cup", "map", "jar")
]


def split(name: str, texts: Sequence[str], labels: Sequence[str] | None = None, **columns: Sequence[str]) -> SplitTexts:
    rows = datasets.Dataset.from_dict({"a": list(texts), **columns})
    numbers = np.arange(len(texts)) + 101
    return SplitTexts(name, RawSplit(rows, name, numbers), rows.column_names, labels or ["x"] * len(texts))


def findings(*splits: SplitTexts, what: str = "labels", compare_all: bool = True) -> dict[tuple[str, str], Finding]:
    found = text_findings({each.name: each for each in splits}, what, compare_all=compare_all)
    assert len({(each.kind, each.split) for each in found}) == len(found)
    return {(each.kind, each.split): each for each in found}


def shown(finding: Finding) -> list[list[tuple[str, int]]]:
    return [[(row.split, row.row) for row in group] for group in finding.examples]


def test_rows_without_any_problem_give_no_finding() -> None:
    assert findings(split("train", FILLER), split("test", ["my car is blue", "her bike is red"])) == {}


def test_repeated_texts() -> None:
    train = split("train", [*FILLER * 2, "One.", "one", "ONE!"])
    found = findings(train)[("repeated_texts", "train")]
    assert (found.rows, found.level) == (22, WARNING)
    assert found.message.startswith("22 rows of train (51.2%) have the text of an earlier row")
    assert shown(found)[0] == [("train", 141), ("train", 142), ("train", 143)]
    few = findings(split("train", [*FILLER, "sun hat sunhat?"]))[("repeated_texts", "train")]
    assert (few.rows, few.level) == (1, NOTE)


def test_texts_with_different_labels() -> None:
    train = split("train", [*FILLER, "Fine.", "fine", "fine"], ["x"] * 20 + ["good", "bad", "bad"])
    test = split("test", ["so so", "FOG jar fogjar"], ["x", "y"])
    found = findings(train, test)[("conflicting_labels", "")]
    assert found.level == WARNING
    assert found.message.startswith("2 texts have different labels in different rows (5 rows)")
    assert shown(found) == [[("train", 120), ("test", 102)], [("train", 121), ("train", 122)]]
    assert [row.label for row in found.examples[1]] == ["good", "bad"]
    assert findings(train, test, what="values")[("conflicting_labels", "")].level == NOTE


def test_the_second_text_of_a_pair_counts() -> None:
    train = split("train", ["same", "same", "Same"], ["p", "q", "p"], b=["one", "two", "one"])
    assert findings(train)[("repeated_texts", "train")].rows == 1
    assert ("conflicting_labels", "") not in findings(train)


def test_texts_in_two_splits() -> None:
    train, validation = split("train", FILLER), split("validation", ["Sun hat: sunhat", "no other", "like it"])
    test = split("test", ["no other!", "rain cup raincup", "rain, cup raincup", "something else"])
    found = findings(train, validation, test)
    in_train = found[("texts_in_train", "validation")]
    assert (in_train.rows, in_train.level, shown(in_train)) == (1, WARNING, [[("validation", 101), ("train", 101)]])
    assert "1 row of validation (33.3%) has the text of a training row, so its scores are too good" in in_train.message


def test_the_same_text_in_validation_and_test_is_a_note() -> None:
    found = findings(split("train", FILLER), split("validation", ["no other"]), split("test", ["no other!", "more"]))
    assert found[("texts_in_validation", "test")].level == NOTE
    assert (
        "of a validation row, so the choice of the best weights has seen them"
        in found[("texts_in_validation", "test")].message
    )


def test_nearly_equal_texts() -> None:
    long = "when will the new card that i ordered last week arrive at my home"
    train, test = split("train", [*FILLER, long]), split("test", [f"{long} address", "quite different"])
    found = findings(train, test)[("near_duplicates", "test")]
    assert (found.rows, found.level, shown(found)) == (1, NOTE, [[("test", 101), ("train", 121)]])
    assert findings(train, test, compare_all=False) == {}
    assert ("near_duplicates", "test") not in findings(train, split("test", [long]))  # equal, which is another finding


@pytest.mark.parametrize(
    ("text", "is_other"),
    [
        ("\u044d\u0442\u043e \u0444\u0438\u043b\u044c\u043c", True),
        ("\u8fd9\u662f\u4e00\u90e8\u7535\u5f71", True),
        ("\u3053\u308c\u306f\u6620\u753b", True),
        ("film \u044d", False),
        ("12345 !?", False),
        ("d\u00e9j\u00e0 vu \u00fcber", False),
    ],
)
def test_rows_in_another_script(text: str, is_other: bool) -> None:
    found = findings(split("train", FILLER), split("test", ["an english text", text]))
    assert (("other_script", "test") in found) == is_other
    if is_other:
        assert shown(found[("other_script", "test")]) == [[("test", 102)]]
        assert "than Latin, that of nearly all training rows" in found[("other_script", "test")].message


def test_no_script_is_unusual_among_several() -> None:
    russian = [f"\u0444\u0438\u043b\u044c\u043c {number}" for number in "abcdefghij"]
    assert ("other_script", "train") not in findings(split("train", [*FILLER, *russian]))
    japanese = ["\u3053\u308c\u306f\u6620\u753b", "\u6620\u753b\u3092\u898b\u308b", "\u6771\u4eac\u90fd"]
    assert findings(split("train", japanese)) == {}  # kana and kanji are written together
