"""Cheap baselines: a constant prediction, and TF-IDF with a linear model.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.baseline import best_constant_set, join_names
from finetune.evaluation.probe import quiet_fit

# Inverse strength of the L2 penalty. On validation rows of TREC, SST-2 and Banking77 (200 to 5,000 training rows) the
# accuracy with 10, 30 and 100 was within 0.02; on NLU++ (62 labels), F1 was 0.22, 0.33 and 0.38 with 300 training rows.
_INVERSE_PENALTY = 100.0
_RIDGE_PENALTY = 1.0
_MAX_FEATURES = 20_000
_PART = 10_000  # rows whose word counts are in memory at a time

Predict = Callable[[EncodedSplit], np.ndarray]


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        description: what it is, for people.
        training_rows: number of rows that it was fitted on.
        predictions: by split, class ids (N,), 0/1 label sets (N, C) or values (N,).
    """

    description: str
    training_rows: int
    predictions: dict[str, np.ndarray]


def constant_prediction(labels: np.ndarray, label_names: Sequence[str]) -> tuple[np.ndarray, str]:
    """Return the best prediction that is the same for every row, and its description.

    It is the most frequent class, the mean value, or the set of the k most frequent labels with the highest micro F1.

    Args:
        labels: of the training rows: class ids (N,), 0/1 label sets (N, C) or values (N,).
    """
    if labels.dtype.kind == "f":
        return np.array(labels.mean()), f"mean of the labels ({labels.mean():.3g})"
    if labels.ndim == 1:
        majority = int(np.bincount(labels).argmax())
        return np.array(majority), f"most frequent label '{label_names[majority]}'"
    chosen = best_constant_set(labels)[0]
    constant = np.zeros(labels.shape[1], dtype=np.int64)
    constant[chosen] = 1
    names = join_names([f"'{label_names[index]}'" for index in chosen])
    return constant, f"most frequent label{'s' if len(chosen) > 1 else ''} {names}"


def fit_tfidf(split: EncodedSplit, rows: np.ndarray, seed: int) -> Predict:
    """Return a function that predicts splits with a linear model on TF-IDF features of words and pairs of words.

    The model is logistic regression, one per class or label, or ridge regression for values.

    Args:
        rows: positions of the training rows to fit on.

    Raises:
        ValueError: there is no word in the texts.
    """
    labels = split.labels[rows]
    if labels.ndim == 1 and np.ptp(labels) == 0:
        return lambda other: np.full(len(other), labels[0])
    vectorizer, model = _fit(_texts(split, rows), labels, seed)

    def predict(other: EncodedSplit) -> np.ndarray:
        parts = (model.predict(vectorizer.transform(_texts(other, part))) for part in _parts(len(other)))
        predicted = np.concatenate(list(parts))
        return predicted if labels.dtype.kind == "f" else predicted.astype(np.int64)

    return predict


def fit_tfidf_probabilities(
    split: EncodedSplit, rows: np.ndarray, num_labels: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from positions of rows to their probabilities (N, C) by the model of `fit_tfidf`.

    A class that none of the rows to fit has gets the probability 0.

    Args:
        rows: positions of the rows to fit on; they have at least two classes, or label sets.

    Raises:
        ValueError: there is no word in the texts.
    """
    labels = split.labels[rows]
    is_binary = labels.ndim > 1 and labels.shape[1] == 1  # one label that a row has or not
    vectorizer, model = _fit(_texts(split, rows), labels.ravel() if is_binary else labels, seed)

    def predict(positions: np.ndarray) -> np.ndarray:
        parts = (positions[part] for part in _parts(len(positions)))
        probabilities = [model.predict_proba(vectorizer.transform(_texts(split, part))) for part in parts]
        predicted = np.concatenate(probabilities)
        if labels.ndim > 1:
            return predicted[:, -num_labels:]
        result = np.zeros((len(positions), num_labels))
        result[:, model.classes_] = predicted
        return result

    return predict


def _fit(texts: list[str], labels: np.ndarray, seed: int) -> tuple[Any, Any]:
    """Return a fitted vectorizer and a model that is fitted to its features."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", max_features=_MAX_FEATURES)
    features = vectorizer.fit_transform(texts)
    with quiet_fit():
        return vectorizer, _linear_model(labels, seed).fit(features, labels)


def _linear_model(labels: np.ndarray, seed: int) -> Any:
    """Return scikit-learn's model for these labels."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if labels.dtype.kind == "f":
        return Ridge(alpha=_RIDGE_PENALTY, random_state=seed)
    # One model per class: five times as fast as one for all classes, and as accurate on the data sets above.
    return OneVsRestClassifier(LogisticRegression(C=_INVERSE_PENALTY, solver="liblinear", random_state=seed))


def _texts(split: EncodedSplit, rows: np.ndarray) -> list[str]:
    """Return the text of each row; the two texts of a pair are joined."""
    columns = split.texts[rows.tolist()]
    return ["\n".join(texts) for texts in zip(*columns.values(), strict=True)]


def _parts(count: int) -> Iterator[np.ndarray]:
    """Yield the positions of `count` rows in parts."""
    return (np.arange(start, min(start + _PART, count)) for start in range(0, count, _PART))
