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


def test_without_repeated_texts_the_rows_are_those_of_earlier_versions() -> None:
    labels, keys = labels_of(30, 20, 9), np.random.default_rng(2).permutation(59).astype(np.uint64)
    expected = [11, 12, 26, 27, 29, 31, 38, 39, 41, 47, 54, 56]  # drawn before texts were compared
    assert sample_validation_rows(labels, 0.2, seed=5).tolist() == expected
    assert sample_validation_rows(labels, 0.2, seed=5, text_keys=keys).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("different_texts", [400, 60])
def test_rows_with_the_same_text_stay_together(different_texts: int, seed: int) -> None:
    labels = labels_of(300, 100, 20)
    keys = np.random.default_rng(seed).integers(0, different_texts, len(labels)).astype(np.uint64)  # also across labels
    rows = sample_validation_rows(labels, 0.2, seed, keys)
    assert not np.isin(keys[rows], np.delete(keys, rows)).any()
    counts = np.bincount(labels[rows], minlength=3)
    assert (counts < np.bincount(labels)).all()
    assert np.abs(counts - np.array([60, 20, 4])).sum() <= (
        0 if different_texts == 400 else 10
    )  # 7 rows per text of 60
    assert sample_validation_rows(labels, 0.2, seed, keys).tolist() == rows.tolist()


def test_a_group_larger_than_the_share_is_held_out_only_if_nothing_else_can_be() -> None:
    labels = np.zeros(20, dtype=np.int64)
    large_and_single = np.array([0] * 12 + list(range(1, 9)), dtype=np.uint64)
    for seed in range(5):
        assert sample_validation_rows(labels, 0.2, seed, large_and_single).min() >= 12
        rows = sample_validation_rows(labels, 0.2, seed, np.repeat(np.array([0, 1], dtype=np.uint64), [12, 8]))
        assert rows.tolist() == list(range(12, 20))


def test_sets_of_labels_and_values_are_grouped() -> None:
    keys = np.repeat(np.arange(10), 2).astype(np.uint64)
    for labels in (np.zeros(20), np.ones((20, 3), dtype=np.int64)):
        rows = sample_validation_rows(labels, 0.2, 0, keys)
        assert len(rows) == 4
        assert not np.isin(keys[rows], np.delete(keys, rows)).any()


@pytest.mark.parametrize("texts", [1, 2])
def test_too_few_different_texts_to_group_them(texts: int) -> None:
    labels = np.arange(20) % 2  # with two texts, each is that of one class, which must keep a training row
    keys = (np.arange(20) % texts).astype(np.uint64)
    assert len(sample_validation_rows(labels, 0.2, 3)) == 4
    assert sample_validation_rows(labels, 0.2, 3, keys).tolist() == sample_validation_rows(labels, 0.2, 3).tolist()


def test_the_hold_out_of_a_recipe_keeps_equal_texts_together() -> None:
    texts = [f"{text}{end}" for text in "abcdefghij" for end in ("", ".", " !")]
    train = [{"sentence": text, "label": "xy"[number % 2]} for number, text in enumerate(texts)]
    data = DataSection(train_rows=train, validation_size=0.2)
    for seed in range(3):
        splits = read_labeled(data, "single_label_classification", None, seed)
        train_texts, held_out = (
            {text[0] for text in splits.raw[name].column("sentence").to_pylist()} for name in splits.raw
        )
        assert len(held_out) == 2
        assert not train_texts & held_out
    split_apart = read_labeled(
        data.model_copy(update={"group_equal_texts": False}), "single_label_classification", None, 1
    )
    train_texts, held_out = (
        {text[0] for text in split_apart.raw[name].column("sentence").to_pylist()} for name in split_apart.raw
    )
    assert train_texts & held_out


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
