"""Reading typed columns: finetune/data/typed_rows.py."""

from __future__ import annotations

import decimal
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from finetune.data.loading import read_splits
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.data_files import MULTI, cells, parquet


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([1, 2, 3], pa.uint8()), ["1", "2", "3"]),
        (pa.array(np.array([1.0, 0.5, 0.0], np.float16)), ["1.0", "0.5", "0.0"]),
        (pa.array([1.0, 0.1, 1e30], pa.float32()), ["1.0", "0.1", "1e+30"]),
        (pa.array([1e300, -0.0, 2.0]), ["1e+300", "-0.0", "2.0"]),
        (pa.array([True, False, True]), ["true", "false", "true"]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal(10**22), decimal.Decimal(0)], pa.decimal128(25, 2)),
         ["1.50", "1" + "0" * 22 + ".00", "0.00"]),
        (pa.array(["a", "b", "a"], pa.large_string()), ["a", "b", "a"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
)  # fmt: skip
def test_typed_columns_are_formatted_as_in_json(tmp_path: Path, values: pa.Array, texts: list[str]) -> None:
    assert [label for _, label in cells(parquet(tmp_path, label=values))] == texts
    assert [text for text, _ in cells(parquet(tmp_path, sentence=values))] == texts


LISTS = [["x", "y"], ["y", "x"], ["x", "z"]]


@pytest.mark.parametrize("list_type", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)])
def test_all_list_types_are_label_sets(tmp_path: Path, list_type: pa.DataType) -> None:
    file = parquet(tmp_path, label=pa.array(LISTS, list_type))
    assert [label for _, label in cells(file, MULTI)] == LISTS
    with pytest.raises(DataError, match=r"d\.parquet row 1: column 'label' .*contains lists .*one label per row"):
        cells(file)


def test_empty_and_dropped_lists_keep_row_numbers(tmp_path: Path) -> None:
    file = parquet(tmp_path, label=pa.array([["1"], None, [], ["2", "3"]]))
    assert cells(file, MULTI, drop_unlabeled=True) == [("text 0", ["1"]), ("text 2", []), ("text 3", ["2", "3"])]
    with pytest.raises(DataError, match=r"row 2: column 'label' is empty; .*drop_unlabeled"):
        cells(file, MULTI)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (pa.array([None, b"\xff", b"y"]), r"row 2: .*contains binary; it must contain texts"),
        (pa.array([0.0, float("inf"), 1.0]), r"row 2: .*contains an infinite number"),
        (pa.array([1, 2, 3], pa.date32()), r"row 1: .*contains date32"),
        (pa.array([1, 2, 3], pa.timestamp("s")), r"row 1: .*contains timestamp"),
        (pa.array([1, 2, 3], pa.duration("s")), r"row 1: .*contains duration"),
        (pa.array([{"a": 1}, {"a": 2}, None]), r"row 1: .*contains struct<a: int64>"),
        (pa.array([["x"], ["y"], ["z"]]), r"row 1: .*contains lists"),
        (pa.array([1.0, float("nan"), 2.0]), r"row 2: column '\w+' is empty"),
        (pa.array(np.array([1.0, np.nan, 2.0], np.float16)), r"row 2: column '\w+' is empty"),
        (pa.nulls(3), r"rows 1, 2, 3: column '\w+' is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["sentence", "label"])
def test_values_without_a_text_are_reported_with_their_row(
    tmp_path: Path, column: str, values: pa.Array, problem: str
) -> None:
    with pytest.raises(DataError, match=rf"d\.parquet {problem}"):
        cells(parquet(tmp_path, **{column: values}))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (pa.array([["x", None], ["y"]]), r"row 1: column 'label' lists an empty label"),
        (pa.array([["x", " "], ["y"]]), r"row 1: column 'label' lists an empty label"),
        (pa.array([[["x"]], [["y"]]]), r"row 1: .*contains list<"),
        (pa.array([["x"], [b"y"]]).cast(pa.list_(pa.binary())), r"row 1: .*contains binary"),
        (pa.array([[1.0], [float("inf")]]), r"row 2: .*infinite"),
        (pa.array([1, 2]), r"row 1: .*has single values \(int64\), but .*needs a set of labels; write .* as a;b"),
    ],
)
def test_every_item_of_a_label_list_is_checked(tmp_path: Path, values: pa.Array, problem: str) -> None:
    with pytest.raises(DataError, match=rf"d\.parquet {problem}"):
        cells(parquet(tmp_path, label=values), MULTI)


def test_declared_class_names_are_used(tmp_path: Path) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    rows = datasets.Dataset.from_dict({"sentence": ["one", "two", "three"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    from_file = read_splits(DataSection(train_file=str(tmp_path / "train.parquet")))["train"]
    from_folder = read_splits(DataSection(dataset_name=str(tmp_path), validation_split=None))["train"]
    for raw in (from_file, from_folder):
        assert (raw.rows["label"][:], raw.class_names) == (["a", "b", "-1"], ["b", "a"])
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "saved"))
    from_disk = read_splits(DataSection(dataset_name=str(tmp_path / "saved"), validation_split=None))["train"]
    assert (from_disk.rows["label"][:], from_disk.class_names) == (["a", "b", "-1"], ["b", "a"])
