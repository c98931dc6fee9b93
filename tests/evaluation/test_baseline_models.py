"""A constant prediction, and TF-IDF with a linear model: finetune/evaluation/baseline_models.py."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest

from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.baseline_models import constant_prediction, fit_tfidf

NAMES = ["a", "b", "c"]


def split_of(texts: list[str], labels: Any, second: list[str] | None = None) -> EncodedSplit:
    """Return a split with these texts, or pairs of texts, and no token ids."""
    columns = {"sentence": texts} if second is None else {"sentence": texts, "other": second}
    rows = datasets.Dataset.from_dict(columns)
    numbers = np.arange(len(texts))
    return EncodedSplit(rows, np.array(labels), numbers, 0.0, rows, "rows", numbers, true_lengths=numbers)


@pytest.mark.parametrize(
    ("labels", "constant", "description"),
    [
        ([0, 1, 1, 2], 1, "most frequent label 'b'"),
        ([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 0]], [1, 1, 0], "most frequent labels 'a', 'b'"),
        ([[0, 0, 1]] * 3, [0, 0, 1], "most frequent label 'c'"),
        ([[0, 0, 0]] * 3, [1, 0, 0], "most frequent label 'a'"),  # any label has an F1 of 0
        ([1.0, 2.0, 6.0], 3.0, "mean of the labels (3)"),
    ],
)
def test_the_best_constant_prediction(labels: Any, constant: Any, description: str) -> None:
    result, text = constant_prediction(np.array(labels), NAMES)
    assert result.tolist() == constant
    assert text == description


TEXTS = ["good film", "bad film", "a good one", "a bad one", "so good", "so bad"] * 5
HELD_OUT = ["good", "bad", "the good film", "the bad film"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 2] * 15, [0, 2, 0, 2]),
        ([[1, 0, 1], [0, 0, 1]] * 15, [[1, 0, 1], [0, 0, 1]] * 2),  # the second label never occurs, the third always
        ([1] * 30, [1] * 4),
    ],
)
def test_tfidf_learns_from_words(labels: Any, expected: Any) -> None:
    predict = fit_tfidf(split_of(TEXTS, labels), np.arange(30), 0)
    predicted = predict(split_of(HELD_OUT, expected))
    assert predicted.tolist() == expected
    assert predicted.dtype.kind == "i"


def test_tfidf_predicts_values() -> None:
    predicted = fit_tfidf(split_of(TEXTS, [5.0, 1.0] * 15), np.arange(30), 0)(split_of(HELD_OUT, [0.0] * 4))
    assert predicted[[0, 2]].min() > 3.5
    assert predicted[[1, 3]].max() < 2.5


def test_both_texts_of_a_pair_are_read() -> None:
    train = split_of(["same"] * 30, [0, 1] * 15, second=TEXTS)
    assert fit_tfidf(train, np.arange(30), 0)(split_of(["same"] * 4, [0] * 4, second=HELD_OUT)).tolist() == [0, 1, 0, 1]


def test_only_the_chosen_rows_are_read() -> None:
    labels = [0, 1] * 10 + [1, 0] * 5
    assert fit_tfidf(split_of(TEXTS, labels), np.arange(20), 0)(split_of(HELD_OUT, [0] * 4)).tolist() == [0, 1, 0, 1]


def test_texts_without_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="empty vocabulary"):
        fit_tfidf(split_of(["!", "?"], [0, 1]), np.arange(2), 0)
