"""Rows of a split that are also training rows: finetune/data/overlap.py."""

from __future__ import annotations

import datasets
import numpy as np

from finetune.data.overlap import count_shared_rows
from finetune.data.rows import RawSplit


def test_rows_shared_with_training_are_counted() -> None:
    train = RawSplit(datasets.Dataset.from_dict({"a": ["One!", "two"], "b": ["x", "y"]}), "train")
    evaluation_split = RawSplit(
        datasets.Dataset.from_dict({"a": [" one ", "two", "three"], "b": ["x", "z", "y"]}), "other"
    )
    assert count_shared_rows(evaluation_split, train, ["a"]) == 2
    assert count_shared_rows(evaluation_split, train, ["a", "b"]) == 1


def test_each_row_counts_once() -> None:
    rng = np.random.default_rng(0)
    train = RawSplit(datasets.Dataset.from_dict({"a": [f"t{n}" for n in rng.integers(0, 40, 50)]}), "train")
    evaluation_split = RawSplit(datasets.Dataset.from_dict({"a": [f"T{n}" for n in rng.integers(20, 60, 30)]}), "other")
    expected = sum(text.lower() in train.rows["a"][:] for text in evaluation_split.rows["a"])
    assert 5 < expected < 25
    assert count_shared_rows(evaluation_split, train, ["a"]) == expected
