from __future__ import annotations

import datasets
import numpy as np
import pytest

from finetune.data.tokenization import EncodedSplit
from finetune.evaluation import cross_validation
from finetune.evaluation.cross_validation import FOLDS, cross_validated_probabilities, text_folds
from finetune.evaluation.label_errors import find_label_errors

WORDS = ["red", "blue", "green"]


def rows_of(texts: list[str], labels: object) -> EncodedSplit:
    """Return a split with these texts and no token ids."""
    rows = datasets.Dataset.from_dict({"sentence": texts})
    numbers = np.arange(1, len(texts) + 1)
    return EncodedSplit(
        rows, np.array(labels), numbers, truncated=0.0, texts=rows, source="rows", numbers=numbers, true_lengths=numbers
    )


def colored(count: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return different texts with one color each, the colors, and states in which the colors are far apart, (N, 4)."""
    colors = np.arange(count) % 3
    states = np.random.default_rng(0).normal(size=(count, 4)) + 4 * np.eye(4)[colors]
    return [f"the {WORDS[color]} one {number}" for number, color in enumerate(colors)], colors, states


def test_equal_texts_are_in_one_fold() -> None:
    texts = ["A  cat", "a cat ", "a dog"] + [f"text {number}" for number in range(47)]
    folds = text_folds(rows_of(texts, [0] * 50), 0)
    assert folds[0] == folds[1]
    assert np.bincount(folds[1:]).tolist() == [10, 10, 10, 10, 9]
    assert (text_folds(rows_of(texts, [0] * 50), 1) != folds).any()


@pytest.mark.parametrize("has_states", [True, False])
def test_planted_errors_come_first(has_states: bool) -> None:
    texts, colors, states = colored(90)
    labels = colors.copy()
    labels[[4, 50]] = (labels[[4, 50]] + 1) % 3
    result = cross_validated_probabilities(rows_of(texts, labels), states if has_states else None, np.arange(90), 3, 0)
    assert result is not None
    assert np.allclose(result.sum(axis=1), 1, atol=1e-5)
    errors = find_label_errors(labels, result)
    assert set(errors.rows[:2]) == {4, 50}
    assert (errors.suggested[:2] == colors[errors.rows[:2]]).all()


def test_no_model_sees_the_rows_that_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, colors, _ = colored(30)
    rows, seen = rows_of(texts, colors), []
    folds = text_folds(rows, 0)

    def fit(split: EncodedSplit, fitted: np.ndarray, num_labels: int, seed: int) -> cross_validation.Predict:
        def predict(positions: np.ndarray) -> np.ndarray:
            seen.append((set(fitted), set(positions)))
            return np.full((len(positions), num_labels), 1 / num_labels)

        return predict

    monkeypatch.setattr(cross_validation, "fit_tfidf_probabilities", fit)
    cross_validated_probabilities(rows, None, np.arange(0, 30, 2), 3, 0)
    assert len(seen) == FOLDS
    for fitted, judged in seen:
        assert not {folds[row] for row in fitted} & {folds[row] for row in judged}
        assert fitted <= set(range(0, 30, 2))
    assert sorted(row for _, judged in seen for row in judged) == list(range(30))


def test_a_label_that_the_other_folds_do_not_have_is_not_judged() -> None:
    texts, colors, states = colored(30)
    labels = colors.copy()
    labels[7] = 3  # the only row of this label
    result = cross_validated_probabilities(rows_of(texts, labels), states, np.arange(30), 4, 0)
    assert result is not None
    assert result[7].tolist() == [0, 0, 0, 1]
    assert (np.delete(result, 7, axis=0)[:, 3] < 0.2).all()


@pytest.mark.parametrize("num_labels", [1, 3])
def test_label_sets(num_labels: int) -> None:
    texts, colors, states = colored(60)
    sets = np.eye(3, dtype=np.int64)[colors][:, :num_labels]
    sets[[3, 31], 0] ^= 1
    result = cross_validated_probabilities(rows_of(texts, sets), states, np.arange(60), num_labels, 0)
    assert result is not None
    assert result.shape == (60, num_labels)
    own = np.where(sets == 1, result, 1 - result).min(axis=1)
    assert set(np.argsort(own)[:2]) == {3, 31}


def test_nothing_can_be_fitted_to_texts_without_words() -> None:
    rows = rows_of(["!" * count for count in range(1, 21)], [0, 1] * 10)
    assert cross_validated_probabilities(rows, None, np.arange(20), 2, 0) is None
    states = np.random.default_rng(0).normal(size=(20, 4))
    assert cross_validated_probabilities(rows, states, np.arange(20), 2, 0) is not None
