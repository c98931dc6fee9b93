"""Sets of labels from cells and from one column per label: finetune/data/label_sets.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.first_rows import check_first_rows
from finetune.data.label_sets import choose_separator, split_labels
from finetune.data.splits import LabeledSplits, read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.data_files import MULTI, cells, written


def read(cells: list[Any], names: list[str] | None = None, **keys: Any) -> LabeledSplits:
    """Return the splits with these label cells, read as from a recipe."""
    rows: list[dict[str, object]] = [{"sentence": f"text {n}", "label": cell} for n, cell in enumerate(cells, start=1)]
    return read_labeled(DataSection(train_rows=rows, validation_size=None, **keys), MULTI, names, seed=0)


@pytest.mark.parametrize(
    ("cells", "names", "separator"),
    [
        (["a;b", "b"], None, ";"),
        (["a,b", "b", "a,c"], None, ","),
        (["Arts, Crafts;Music", "Music", "Toys, Games;Music"], None, ";"),
        (["a,b", "b,c", "a,c", "d;e"], None, ","),  # one semicolon does not decide against many commas
        (["a b", "c"], None, None),
        (["Toys, Games", "Music"], ["Toys, Games", "Music"], None),  # the names are known
        (["a;b", "b|c"], ["a", "b|c", "b"], ";"),
        (["0,2", "1"], ["x", "y", "z"], ","),  # class ids
    ],
)
def test_the_separator_is_chosen(cells: list[str], names: list[str] | None, separator: str | None) -> None:
    assert choose_separator(cells, names) == separator


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("a; b;;c;", ["a", "b", "c"]),
        (" [] ", []),
        ("  ", []),
        ('["a;b", 1, 2.50, true]', ["a;b", "1", "2.50", "true"]),
        (r"""['it''s', "b", 3]""", None),
        ("['a' 'b']", None),  # numpy without commas, which Python would join to one text
        (r"['it\'s', 3]", ["it's", "3"]),
        ("[spam]", ["spam"]),
        ("[[1], [2]]", None),
        ("[a b]", None),
    ],
)
def test_cells_are_split(cell: str, labels: list[str] | None) -> None:
    if labels is None:
        with pytest.raises(ValueError, match=r"looks like a list and is none; write .*a;b|a list in its list"):
            split_labels(cell, ";")
    else:
        assert split_labels(cell, ";") == labels


def test_the_choice_is_reported_and_can_be_made() -> None:
    splits = read(["x;y", "y", ["z", "x;y"]])
    assert splits.label_names == ["x", "x;y", "y", "z"]
    assert splits.labels["train"].tolist() == [[1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 1]]
    (note,) = splits.notes
    assert "split at ';': 'x;y' is 'x' and 'y' (data.label_delimiter; null does not split them)" in note
    assert read(["x;y", "y"], label_delimiter=None).label_names == ["x;y", "y"]
    assert read(["x / y", "y"], label_delimiter="/").label_names == ["x", "y"]
    assert read(["x", "y"], ["x", "y"]).labels["train"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(DataError, match=r"data\.train_rows: every row has one label .* single_label_classification"):
        read(["x", "y"])
    with pytest.raises(DataError, match=r"rows 2, 3: column 'label' \(data\.label_column\) has '\[a b\]', which looks"):
        read(["x;y", "[a b]", "[a b]"])


def test_lists_and_cells_may_be_mixed_over_splits(tmp_path: Path) -> None:
    lists = tmp_path / "train.jsonl"
    lists.write_text('{"sentence": "a", "label": ["x", "y"]}\n{"sentence": "b", "label": []}\n')
    cells = written(tmp_path, "csv", "sentence,label\nc,x|y\nd,y\n")
    data = DataSection(train_file=str(lists), validation_file=str(cells))
    splits = read_labeled(data, MULTI, None, seed=0)
    assert splits.labels["validation"].tolist() == [[1, 1], [0, 1]]
    assert "split at '|'" in splits.notes[0]


def test_check_reports_the_choice_too(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence,label\na,x;y\nb,\nc,y\nd,x\n")
    notes = check_first_rows(DataSection(train_file=str(file), validation_size=None), MULTI, None).notes
    assert len(notes) == 2
    assert "split at ';'" in notes[0]
    assert "1 row has an empty cell in column 'label', which means that no label applies" in notes[1]


def test_an_empty_cell_means_no_label_and_null_a_missing_one(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence,label\na,x;y\nb,\nc,[]\n")
    assert cells(file, MULTI) == [("a", ["x", "y"]), ("b", []), ("c", [])]
    assert cells(file, MULTI, drop_unlabeled=True) == [("a", ["x", "y"]), ("c", [])]
    with pytest.raises(DataError, match=r"row 2: column 'label' is empty; .*drop_unlabeled"):
        read(["x;y", None])


ONE_HOT = "sentence,bug,bill\na,1,0\nb,true,1.0\nc,0,FALSE\n"


def test_columns_of_zeros_and_ones(tmp_path: Path) -> None:
    columns = ["bug", "bill"]
    data = DataSection(train_file=str(written(tmp_path, "csv", ONE_HOT)), label_columns=columns, validation_size=None)
    splits = read_labeled(data, MULTI, None, seed=0)
    assert (splits.label_names, splits.labels["train"].tolist()) == (columns, [[1, 0], [1, 1], [0, 0]])
    assert check_first_rows(data, MULTI, None).labels == 2
    for cell, message in (
        ("2", r"row 4: column 'bug' \(data\.label_columns\) has '2'; it must have 0 or 1"),
        ("", r"row 4: column 'bug' \(data\.label_columns\) is empty; write 0 or 1"),
    ):
        written(tmp_path, "csv", f"{ONE_HOT}d,{cell},1\n")
        with pytest.raises(DataError, match=message):
            read_labeled(data, MULTI, None, seed=0)
    file = written(tmp_path, "csv", f"{ONE_HOT}d,,\n")
    assert len(cells(file, MULTI, label_columns=columns, drop_unlabeled=True)) == 3
    with pytest.raises(DataError, match=r"row 4: column 'label' is empty"):
        cells(file, MULTI, label_columns=columns)


def test_typed_columns_of_zeros_and_ones(tmp_path: Path) -> None:
    table = pa.table({"sentence": ["a", "b"], "x": [True, False], "y": pa.array([1.0, 0.0])})
    pq.write_table(table, tmp_path / "d.parquet")
    assert cells(tmp_path / "d.parquet", MULTI, label_columns=["x", "y"]) == [("a", ["x", "y"]), ("b", [])]


def test_vectors_are_refused_with_the_way_to_give_them() -> None:
    with pytest.raises(DataError, match=r"vectors of zeros and ones are not supported; .*data\.label_columns"):
        read([[1, 0], [0, 1]], ["x", "y"])
