"""Labels that could be misread are rejected: finetune/data/labels.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune.data.splits import LabeledSplits, read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from finetune.runs.results import SplitSummary

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def read(labels: list[Any], problem_type: str = SINGLE, names: list[str] | None = None, **keys: Any) -> LabeledSplits:
    """Return splits with these labels, read as from a recipe."""
    splits = {f"{split}_rows": rows(keys.pop(split)) for split in ("validation", "test") if split in keys}
    data = DataSection(train_rows=rows(labels), validation_size=None, **splits, **keys)
    return read_labeled(data, problem_type, names, seed=0)


def rows(labels: list[Any]) -> list[dict[str, object]]:
    return [{"sentence": f"text {n}", "label": label} for n, label in enumerate(labels, start=1)]


@pytest.mark.parametrize(
    ("labels", "names", "read_names", "ids"),
    [
        (["0.0", "1", "1.0", "0"], None, ["0", "1"], [0, 1, 1, 0]),
        ([0.0, 1.0, 2.0], None, ["0", "1", "2"], [0, 1, 2]),
        (["0.0", "1.0"], ["bad", "good"], ["bad", "good"], [0, 1]),
        (["0", "1"], ["0.0", "1.0"], ["0.0", "1.0"], [0, 1]),
        (
            ["-1.0", "0", "1"],
            ["-1", "0", "1"],
            ["-1", "0", "1"],
            [0, 1, 2],
        ),  # -1 is an ordinary class if it is named
        ([1, -1, -1], None, ["-1", "1"], [1, 0, 0]),
        (["1.0", "1.5", "1"], ["1.0", "1.5"], ["1.0", "1.5"], [0, 1, 0]),
        (["007", "7"], None, ["007", "7"], [0, 1]),
        (["nan", "deu"], None, ["deu", "nan"], [1, 0]),  # "nan" is a language code here, not a missing number
        (["x", "X"], ["x", "X"], ["x", "X"], [0, 1]),
    ],
)
def test_labels_that_are_read(
    labels: list[Any], names: list[str] | None, read_names: list[str], ids: list[int]
) -> None:
    splits = read(labels, names=names)
    assert (splits.label_names, splits.labels["train"].tolist()) == (read_names, ids)


IDS = r"the ids of .* are 0"


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        # ids that count from 1
        ([1, 2, 3], ["bad", "ok", "good"], rf"has the ids 1, 2, 3, and no row has id 0 \(bad\); {IDS} to 2"),
        ([1, 2, 1], ["bad", "ok", "good"], rf"has the ids 1, 2, and no row has id 0 \(bad\); {IDS} to 2"),
        ([0, 1, 3], ["bad", "ok", "good"], r"row 3: label '3' .*ids are 0 \(bad\) to 2 \(good\)"),
        # rows without a label
        ([0, -1, 1, "-1.0"], ["neg", "pos"], r"rows 2, 4: label -1 marks rows .*drop_unlabeled.*ids are"),
        ([0, None, 1], None, r"row 2: column 'label' is empty; give a value or remove .* set data\.drop_unlabeled"),
        ([0.0, float("nan"), 1.0], None, r"row 2: column 'label' is empty"),
        (["0.0", "-1", "1", "-1.0"], None, r'label -1 \(2 rows\) .*drop_unlabeled: true .*: \["-1", "0", "1"\] to'),
        (["0.0", "nan", "1.0", "NaN"], None, r"rows 2, 4: label 'nan' among numbers .*means a missing label"),
        # one label, two spellings
        (["pos", "Pos", "neg", "pos"], None, r"labels 'pos' \(2 rows\) and 'Pos' \(1 row\) .*differ only in case"),
        (["pos", "pos ", "neg"], None, r"labels 'pos' \(1 row\) and 'pos ' \(1 row\)"),
        (["caf\u00e9", "cafe\u0301", "tea"], None, r"labels 'caf\\xe9' \(1 row\) and 'cafe\\u0301' \(1 row\)"),
        (["new york", "new\u00a0york", "rome"], None, r"and 'new\\xa0york' \(1 row\).*Unicode form"),
        (["pos", "pos\u200b", "neg"], None, r"and 'pos\\u200b' \(1 row\)"),
        (["pos", "Neg"], ["pos", "neg"], r"row 2: label 'Neg' .*'Neg' differs from 'neg' only in case.*write 'neg'"),
    ],
)  # fmt: skip
def test_labels_that_would_be_misread(labels: list[Any], names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.train_rows.*? {message}"):
        read(labels, names=names)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([[1, 0], [0, 1], [1, 0]], ["spam", "ham"]),
        ([[1.0, 0.0], [0.0, 1.0]], ["spam", "ham"]),
        ([["1", "0"], ["0", "1"]], None),
        ([[True, False], [False, True]], ["spam", "ham"]),
        ([[1, 0, 0], [0, 1, 1]], ["spam", "ham", "other"]),
    ],
)
def test_vectors_of_zeros_and_ones_are_not_lists_of_labels(labels: list[Any], names: list[str] | None) -> None:
    with pytest.raises(
        DataError, match=r"data\.train_rows: every row of column 'label' has \d entries, .*vectors of ze"
    ):
        read(labels, MULTI, names)


def test_lists_of_ids_are_not_vectors() -> None:
    splits = read([[0, 1], [1], [], [1, 0]], MULTI, ["spam", "ham"])
    assert splits.labels["train"].tolist() == [[1, 1], [0, 1], [0, 0], [1, 1]]
    with pytest.raises(DataError, match=r"row 2: .*lists an empty label"):
        read([["a"], ["b", None]], MULTI)


@pytest.mark.parametrize("number", ["1e39", "-1e300", "inf", "1_000", "1,5", "0x10", "nan"])
def test_numbers_that_a_model_cannot_predict(number: str) -> None:
    with pytest.raises(DataError, match=rf"row 2: '{number}' in column 'label' is not a number, or exceeds 3\.4e\+38"):
        read(["1.5", number], REGRESSION)
    assert read(["1.5", " 2e3 ", "-.5"], REGRESSION).labels["train"].tolist() == [1.5, 2000, -0.5]


def test_rows_without_a_label_are_counted_and_keep_the_numbers_of_the_others() -> None:
    splits = read([0, -1, 1, None, 1], names=["neg", "pos"], drop_unlabeled=True, test=[1, -1])
    assert splits.labels["train"].tolist() == [0, 1, 1]
    assert splits.raw["train"].row_numbers().tolist() == [1, 3, 5]
    assert {split: raw.dropped for split, raw in splits.raw.items()} == {"train": 2, "test": 1}
    named = read([0, -1, 1, None], names=["-1", "0", "1"], drop_unlabeled=True)
    assert (named.labels["train"].tolist(), named.raw["train"].dropped) == ([1, 0, 2], 1)
    with pytest.raises(DataError, match=r"data\.test_rows row 3: label 'what' .*not one of the labels"):
        read(["neg", "pos", None], names=["neg", "pos"], drop_unlabeled=True, test=["neg", None, "what"])
    with pytest.raises(DataError, match=r"data\.test_rows row 4: label 'no' does not occur in the training rows"):
        read(["yes", "maybe"], names=["yes", "maybe", "no"], drop_unlabeled=True, test=["yes", "", "yes", "no"])


def test_dropped_rows_are_reported() -> None:
    summary = SplitSummary(3, {"neg": 1, "pos": 2}, 4.0, 5, 0.0, unlabeled_rows_dropped=2)
    assert summary.notes("test") == ["2 rows without a label were dropped from the test split."]
    assert replace(summary, unlabeled_rows_dropped=1).notes("test")[0].startswith("1 row without a label was dropped")
    assert replace(summary, unlabeled_rows_dropped=0).notes("test") == []
