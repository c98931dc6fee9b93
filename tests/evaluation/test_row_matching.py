from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from finetune.evaluation.row_matching import as_array, compare_rows, row_texts, rows_of_split
from tests.support.compared_runs import rows


def test_equal_rows_match_in_any_order() -> None:
    table = rows(["a", "b", "a"], ["a", "a", "a"])
    assert compare_rows(table, table.take(pa.array([2, 0, 1]))) is None
    sets = rows([["x", "y"], []], [["x"], []])
    assert compare_rows(sets, sets.set_column(2, "label", pa.array([["y", "x"], []]))) is None


def test_different_rows_are_counted() -> None:
    first = rows(["a", "b", "a", "b"], ["a"] * 4)
    second = rows(["b", "b", "b"], ["a"] * 3, first=3)  # rows 3 and 4 in both, and row 3 has another label
    mismatch = compare_rows(first, second)
    assert mismatch is not None
    expected = "rows only in A: 2, only in B: 1, in both with another label: 1"
    assert mismatch.text("A", "B") == expected
    other_text = first.set_column(1, "text", pa.array(["other", *first["text"].to_pylist()[1:]]))
    mismatch = compare_rows(first, other_text)
    assert mismatch is not None
    assert vars(mismatch) == {"only_first": 1, "only_second": 1, "other_label": 0}


def test_a_split_is_sorted_by_row() -> None:
    table = rows(["a", "b"], ["a", "a"]).take(pa.array([1, 0]))
    split = table.append_column("split", pa.array(["test", "test"]))
    assert rows_of_split(split, "test")["label"].to_pylist() == ["a", "b"]
    assert rows_of_split(split, "validation").num_rows == 0
    pairs = table.append_column("text_1", pa.array(["p", "q"]))
    assert row_texts(pairs) == [("text 2", "p"), ("text 1", "q")]


def test_columns_become_arrays() -> None:
    names = ["a", "b"]
    assert as_array(pa.chunked_array([["b", "a"]]), names).tolist() == [1, 0]
    assert as_array(pa.chunked_array([[["b", "a"], [], ["b"]]]), names).tolist() == [[1, 1], [0, 0], [0, 1]]
    values = as_array(pa.chunked_array([pa.array([0.5, 2], pa.float32())]), [])
    assert (values.dtype, values.tolist()) == (np.float64, [0.5, 2])
    with pytest.raises(KeyError):
        as_array(pa.chunked_array([["c"]]), names)
