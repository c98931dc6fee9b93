from __future__ import annotations

import numpy as np

from finetune.report.confusions import ConfusedPair, confused_pairs, confusion_order


def test_confused_classes_are_neighbors() -> None:
    """Classes 0 and 3, 1 and 4, 2 and 5 are confused with each other; 0 and 1 sometimes."""
    confusion = np.diag([50] * 6)
    for first, second, rows in ((0, 3, 20), (1, 4, 15), (2, 5, 10), (0, 1, 5)):
        confusion[first, second] = confusion[second, first] = rows
    order = confusion_order(confusion.tolist())
    assert sorted(order) == list(range(6))
    places = {label: place for place, label in enumerate(order)}
    assert [abs(places[label] - places[label + 3]) for label in range(3)] == [1, 1, 1]
    assert abs(places[0] - places[1]) == 1  # of all orders of the pairs, the one in which these meet


def test_few_classes_and_classes_without_rows_have_an_order() -> None:
    assert confusion_order([[3, 1], [2, 4]]) == [0, 1]
    assert sorted(confusion_order(np.zeros((4, 4), int).tolist())) == [0, 1, 2, 3]


def test_the_pairs_with_the_most_rows_come_first() -> None:
    confusion = [[8, 2, 0], [3, 27, 0], [0, 2, 2]]
    assert confused_pairs(confusion, ["a", "b", "c"], 2) == [
        ConfusedPair("b", "a", 3, 0.1), ConfusedPair("c", "b", 2, 0.5),
    ]  # fmt: skip
    assert confused_pairs([[1, 0], [0, 1]], ["a", "b"], 2) == []
