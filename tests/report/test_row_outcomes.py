from __future__ import annotations

import pyarrow as pa

from finetune.report.row_outcomes import label_sets, wrong_rows


def test_wrong_rows_of_each_problem_type() -> None:
    single = pa.table({"label": ["a", "b"], "predicted": ["a", "a"]})
    assert wrong_rows(single).tolist() == [False, True]
    multi = pa.table({"label": [["a", "b"], [], ["a"]], "predicted": [["b", "a"], ["b"], ["a", "b"]]})
    assert wrong_rows(multi).tolist() == [False, True, True]
    none = pa.table(
        {"label": pa.array([[]], pa.list_(pa.string())), "predicted": pa.array([[]], pa.list_(pa.string()))}
    )
    assert wrong_rows(none).tolist() == [False]
    assert wrong_rows(pa.table({"label": [0.5], "predicted": [0.25]})).tolist() == [False]


def test_label_sets_are_a_matrix() -> None:
    column = pa.chunked_array([[["b"], []], [["a", "c"]]])
    assert label_sets(column, ["a", "b", "c"]).tolist() == [[False, True, False], [False] * 3, [True, False, True]]
