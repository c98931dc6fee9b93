"""Spellings of labels, classes with few rows, and values far from all others: finetune/data/quality_labels.py."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np

from finetune.data.quality_labels import label_findings
from finetune.data.quality_texts import SplitTexts
from finetune.data.rows import RawSplit
from finetune.runs.data_quality import Finding


def findings(names: Sequence[str], **labels: np.ndarray) -> list[Finding]:
    splits = {}
    for name, values in labels.items():
        rows = datasets.Dataset.from_dict({"a": [f"text {number}" for number in range(len(values))]})
        splits[name] = SplitTexts(name, RawSplit(rows, name), ["a"], [str(value) for value in values])
    return label_findings(splits, labels, names)


def ids(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def test_enough_rows_of_labels_that_differ_give_no_finding() -> None:
    assert findings(["good", "bad"], train=ids(8, 8), test=ids(10, 10)) == []


def test_labels_that_differ_in_spelling() -> None:
    names = ["card arrival", "card_arrival", "lost", "Caf\u00e9", "cafe\u0301"]
    (found,) = findings(names, train=ids(8, 8, 8, 8, 8))
    assert (found.kind, found.rows) == ("label_spellings", 4)
    assert r"'card arrival' and 'card_arrival', 'Caf\xe9' and 'cafe\u0301'. If they are one label" in found.message


def test_classes_with_few_rows() -> None:
    train, test = findings(["a", "b", "c"], train=ids(30, 7, 1), test=ids(10, 9, 0))
    assert (train.kind, train.split, train.rows) == ("few_training_rows", "train", 2)
    assert train.message.startswith("2 of 3 labels have fewer than 8 training rows, too few to learn: c (1), b (7).")
    assert (test.kind, test.split, test.rows) == ("few_scored_rows", "test", 2)
    assert (
        "fewer than 10 test rows, too few to measure each of them: c (0), b (9); a recall of 0.9 on 4 rows"
        in test.message
    )
    assert "has the 95 % interval 0.42 to 0.99" in test.message  # Wilson (1927) with p = 0.9 and n = 4, by hand


def test_the_rows_of_each_label_of_a_set_are_counted() -> None:
    sets = np.zeros((20, 3), dtype=np.int64)
    sets[:, 0], sets[:3, 1], sets[:, 2] = 1, 1, 1
    (found,) = findings(["a", "b", "c"], train=sets)
    assert "1 of 3 labels has fewer than 8 training rows, too few to learn: b (3)." in found.message


def test_values_far_from_all_others() -> None:
    values = np.concatenate([np.linspace(0, 4, 101), [11, -60]])  # quartiles 0.98 and 3.02
    found, in_test = findings(["value"], train=values, test=np.array([1.0, 9.2, -5.1]))
    assert (found.kind, found.split, found.rows) == ("outliers", "train", 2)
    assert [group[0].row for group in found.examples] == [103, 102]
    assert (in_test.rows, in_test.examples[0][0].label) == (1, "9.2")
    assert findings(["value"], train=np.ones(9), test=np.zeros(2)) == []  # a constant has no usual distance
