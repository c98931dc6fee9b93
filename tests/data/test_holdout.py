"""Rows held out for validation, and samples of the training rows: finetune/data/holdout.py."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.holdout import held_out_share, sample_training_rows, sample_validation_rows
from finetune.data.splits import read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection


def labels_of(*sizes: int) -> np.ndarray:
    """Return shuffled class ids with these numbers of rows per class."""
    ids = np.repeat(np.arange(len(sizes)), sizes)
    return np.asarray(np.random.default_rng(7).permutation(ids))


@pytest.mark.parametrize(
    ("setting", "rows", "share"), [("auto", 999, 0.2), ("auto", 1000, 0.1), (0.3, 999, 0.3), (None, 999, None)]
)
def test_the_share_to_hold_out(setting: float | str | None, rows: int, share: float | None) -> None:
    assert held_out_share(setting, rows) == share


@pytest.mark.parametrize(
    ("sizes", "share", "num_held_out"),
    [
        ([15] * 20, 0.1, 30),  # 30 of 300 rows, although each class has one and a half
        ([280, 20], 0.1, 30),
        ([10, 10], 0.25, 5),
        ([8, 8], 0.1, 2),  # 1.6, rounded
        ([100, 1, 1], 0.5, 51),
        ([2, 2, 2], 0.9, 3),  # each class keeps at least one row
    ],
)
def test_the_share_is_held_out_in_proportion(sizes: list[int], share: float, num_held_out: int) -> None:
    labels = labels_of(*sizes)
    rows = sample_validation_rows(labels, share, seed=3)
    counts = np.bincount(labels[rows], minlength=len(sizes))
    assert (len(rows), len(set(rows.tolist())), counts.sum()) == (num_held_out, num_held_out, num_held_out)
    assert (counts < sizes).all()
    expected = np.minimum(np.array(sizes) * num_held_out / sum(sizes), np.array(sizes) - 1)
    assert np.abs(counts - expected).max() <= 1
    assert sample_validation_rows(labels, share, seed=3).tolist() == rows.tolist() == sorted(rows)
    assert sample_validation_rows(labels, share, seed=4).tolist() != rows.tolist()


@pytest.mark.parametrize("labels", [np.zeros(20), np.ones((20, 3), dtype=np.int64)])
def test_values_and_sets_of_labels_are_held_out_from_all_rows(labels: np.ndarray) -> None:
    assert len(sample_validation_rows(labels, 0.26, seed=0)) == 5
    assert len(sample_training_rows(labels, 3, seed=0)) == 3


@pytest.mark.parametrize(("sizes", "share"), [([2], 0.2), ([1, 1, 1, 1], 0.5)])
def test_too_few_rows_to_hold_any_out(sizes: list[int], share: float) -> None:
    with pytest.raises(
        DataError, match=rf"validation_size: {share} of {sum(sizes)} training rows is less than one row, or"
    ):
        sample_validation_rows(labels_of(*sizes), share, seed=0)


@pytest.mark.parametrize(
    ("sizes", "count", "counts"),
    [([97, 1, 1, 1], 4, [1, 1, 1, 1]), ([97, 1, 1, 1], 50, [47, 1, 1, 1]), ([30, 20, 10], 31, [16, 10, 5])],
)
def test_a_sample_of_the_training_rows_has_every_class(sizes: list[int], count: int, counts: list[int]) -> None:
    labels = labels_of(*sizes)
    rows = sample_training_rows(labels, count, seed=3)
    assert np.bincount(labels[rows]).tolist() == counts
    assert len(set(rows.tolist())) == count
    assert rows.tolist() != sample_training_rows(labels, count, seed=4).tolist()


def test_too_few_rows_for_every_class_are_rejected() -> None:
    with pytest.raises(DataError, match=r"max_train_samples: 2 is less than the 3 classes .*at least 3"):
        sample_training_rows(labels_of(5, 5, 5), 2, seed=0)


def test_a_limit_keeps_every_class() -> None:
    train = [{"sentence": f"text {n}", "label": "rare" if n == 17 else "ab"[n % 2]} for n in range(300)]
    rows = [{"sentence": "x", "label": label} for label in ("a", "b", "rare")]
    for seed in range(5):
        data = DataSection(train_rows=train, validation_rows=rows, max_train_samples=10)
        splits = read_labeled(data, "single_label_classification", None, seed)
        assert np.bincount(splits.labels["train"], minlength=3).min() >= 1
        assert splits.raw["train"].rows.num_rows == 10
