"""Reading, labeling and splitting rows: finetune/data/splits.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from finetune.data.labels import encode_labels, label_counts, label_names
from finetune.data.loading import columns_to_read
from finetune.data.named_dataset import from_dataset
from finetune.data.rows import RawSplit
from finetune.data.splits import LabeledSplits, read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection

SINGLE = "single_label_classification"


def section(folder: Path, **files: str | bytes | list[Any]) -> DataSection:
    """Write files named SPLIT_ENDING and return the section that names them, without rows to hold out."""
    files_by_key: dict[str, str | None] = {"validation_size": None}
    for key, content in files.items():
        split, ending = key.split("_")
        path = folder / f"{split}.{ending}"
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        files_by_key[f"{split}_file"] = str(path)
    return DataSection.model_validate(files_by_key)


def read(folder: Path, names: list[str] | None = None, problem_type: str = SINGLE, **files: Any) -> LabeledSplits:
    return read_labeled(section(folder, **files), problem_type, names, seed=0)


GOOD = "sentence,label\nalpha,no\nbeta,yes\n"


def test_csv_is_read_as_written(tmp_path: Path) -> None:
    splits = read(
        tmp_path, train_csv='sentence,label\nNA,007\nnull,1\n"1,5",007\n', test_csv="\ufeffsentence,label\n12,1\n"
    )
    assert splits.raw["train"].rows["sentence"][:] == ["NA", "null", "1,5"]
    assert splits.raw["test"].rows["sentence"][:] == ["12"]  # the byte order mark is not part of the name
    assert splits.label_names == ["1", "007"]
    assert splits.labels["train"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_all_formats_give_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = [{"sentence": "alpha", "label": "no"}, {"sentence": "beta", "label": "yes"}]
    path = tmp_path / f"train.{ending}"
    table = datasets.Dataset.from_list(rows)
    if ending in ("csv", "tsv"):
        table.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    elif ending == "parquet":
        table.to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows))
    splits = read_labeled(DataSection(train_file=str(path), validation_size=None), SINGLE, None, seed=0)
    assert splits.raw["train"].rows["sentence"][:] == ["alpha", "beta"]
    assert (splits.label_names, splits.labels["train"].tolist()) == (["no", "yes"], [0, 1])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_csv": ""}, r"train\.csv is empty \(0 bytes\)"),
        ({"train_csv": "sentence,label\n"}, r"train\.csv has no rows"),
        ({"train_csv": "text,label\na,b\n"}, r"no column 'sentence' .*it has text, label; set data\.text_column"),
        ({"train_jsonl": "{}\n{}\n"}, r"no column 'sentence' \(data\.text_column\); it has no columns"),
        ({"train_csv": "sentence,labels\na,b\n"}, r"no column 'label' .*did you mean 'labels'"),
        ({"train_csv": "sentence,label\na,x\nb,\nc,y\n"}, r"train\.csv row 2: column 'label' is empty"),
        ({"train_csv": "sentence,label\na,x\nb\nc,y\n"}, r"row 2 \(line 3\) has 1 cell, but the header names 2"),
        ({"train_csv": "sentence,label\n  ,x\nb,y\n"}, r"train\.csv row 1: column 'sentence' is empty"),
        ({"train_csv": "sentence,label\na,x\nb,y,z\n"}, r"row 2 \(line 3\) has 3 cells.*quotation marks"),
        ({"train_csv": "sentence,sentence\na,x\n"}, r"two columns 'sentence' \(data\.text_column\); rename"),
        ({"train_csv": "\n\n"}, r"has no header; write the names of the columns"),
        ({"train_csv": b"sentence,label\na,x\nb\xe9,y\n"}, r"line 3 is not UTF-8 \(byte 0xe9 at position 2\)"),
        ({"train_csv": "sentence,label\na,x\nb,x\n"}, r"has only the label 'x' in column 'label'; a class"),
        ({"train_csv": "sentence,label\nWell a,the tail,x\nb,c,y\n"}, r"row 1 \(line 2\) has 3 cells"),
        ({"train_csv": "sentence;label\na;x\n"}, r"only the label 'x' in column 'label'"),
        ({"train_jsonl": [{"sentence": ["a"], "label": "x"}]}, r"row 1: column 'sentence' .*contains a list"),
        ({"train_jsonl": [{"sentence": "a", "label": {"b": 1}}]}, r"row 1: column 'label' .*contains an object"),
        ({"train_jsonl": '{"sentence": "a", "label": 1}\n{"sentence": '}, r"jsonl line 2 is not valid JSON: Exp"),
        ({"train_parquet": b"no parquet"}, r"train\.parquet cannot be read as parquet"),
        ({"train_csv": GOOD, "validation_csv": "sentence,label\na,no\nb,yess\n"},
         r"validation\.csv row 2: label 'yess' in column 'label' is not one of the labels no, yes; did you mean 'yes'"),
    ],
)  # fmt: skip
def test_bad_data_is_reported_with_file_and_row(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, **files)


def test_a_label_unseen_in_training_is_an_error_even_when_declared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.csv rows 1, 3: label 'maybe' does not occur in the training rows"):
        read(tmp_path, ["no", "yes", "maybe"], train_csv=GOOD, test_csv="sentence,label\na,maybe\nb,no\nc,maybe\n")


def test_a_single_numeric_label_is_not_regression(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="has only the label '1' in column 'label'; a classifier needs at least two labels"
    ):
        read(tmp_path, train_jsonl=[{"sentence": "a", "label": 1}, {"sentence": "b", "label": 1}])


def test_a_validation_split_may_have_fewer_classes(tmp_path: Path) -> None:
    splits = read(tmp_path, train_csv=GOOD, validation_csv="sentence,label\na,yes\n")
    assert splits.labels["validation"].tolist() == [1]


def test_rows_may_have_class_ids_of_declared_names(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    splits = read(tmp_path, ["zero", "one"], train_jsonl=rows)
    assert splits.labels["train"].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"row 1: label '2' .*not one of the labels zero, one"):
        read(tmp_path, ["zero", "one"], train_jsonl=[{"sentence": "a", "label": 2}, rows[1]])
    with pytest.raises(DataError, match=r"row 2: label -1 marks rows without a label"):
        read(tmp_path, ["zero", "one"], train_jsonl=[rows[0], {"sentence": "b", "label": -1}])


def labeled_rows(values: list[Any], names: list[str] | None = None) -> RawSplit:
    """Return a loaded data set with these labels, or with these ids of the given class names."""
    table = {"sentence": [f"text {n}" for n in range(len(values))], "label": values}
    rows = datasets.Dataset.from_dict(table)
    if names is not None:
        rows = rows.cast_column("label", datasets.ClassLabel(names=names))
    return from_dataset(rows, "here", columns_to_read(DataSection(train_file="unread.csv"), lists=False))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 10], ["9", "10"]),
        ([1.0, 0.0, 1.0], ["0", "1"]),
        ([1.5, 0.0, 1.0], ["0.0", "1.0", "1.5"]),
        ([True, False, True], ["false", "true"]),
        (["b", "a", "c"], ["a", "b", "c"]),
        (["007", "1", "1.0"], ["1", "007"]),
        (["1.0", "1.10", "2.0"], ["1.0", "1.10", "2.0"]),  # versions: not all are whole numbers
        (["1" + "0" * 25, "9"], ["9", "1" + "0" * 25]),
    ],
)
def test_names_are_read_from_training_rows(values: list[Any], names: list[str]) -> None:
    assert label_names(labeled_rows(values), "label", SINGLE, None) == names


def test_the_label_order_of_a_checkpoint_is_used_for_the_same_names() -> None:
    raw = RawSplit(datasets.Dataset.from_dict({"label": ["b", "a", "c"]}), "here")
    assert label_names(raw, "label", SINGLE, None, ["c", "a", "b"]) == ["c", "a", "b"]
    assert label_names(raw, "label", SINGLE, None, ["c", "a", "d"]) == ["a", "b", "c"]
    assert label_names(raw, "label", SINGLE, ["b", "c", "a"], ["c", "a", "b"]) == ["b", "c", "a"]


def test_class_label_features_keep_their_names() -> None:
    raw = labeled_rows([1, 0], ["neg", "pos"])
    names = label_names(raw, "label", SINGLE, None)
    assert names == ["neg", "pos"]
    assert encode_labels(raw, "label", SINGLE, names).tolist() == [1, 0]


def test_class_label_names_may_be_numbers_or_be_declared_in_another_order() -> None:
    raw = labeled_rows([0, 2, 1], ["1", "2", "3"])
    assert encode_labels(raw, "label", SINGLE, label_names(raw, "label", SINGLE, None)).tolist() == [0, 2, 1]
    assert encode_labels(raw, "label", SINGLE, ["3", "2", "1"], ids_allowed=True).tolist() == [2, 0, 1]
    unlabeled = labeled_rows([-1, 2], ["1", "2", "3"])
    with pytest.raises(DataError, match="row 1: label -1 marks rows without a label"):
        encode_labels(unlabeled, "label", SINGLE, ["1", "2", "3"])


def test_class_ids_need_declared_names_that_are_not_numbers(tmp_path: Path) -> None:
    files = {"train_csv": "sentence,label\na,1\nb,2\nc,3\n", "test_csv": "sentence,label\na,0\n"}
    with pytest.raises(DataError, match=r"test\.csv row 1: label '0' .*not one of the labels 1, 2, 3"):
        read(tmp_path, **files)
    with pytest.raises(DataError, match=r"test\.csv row 1: label '0' .*not one of the labels 1, 2, 3"):
        read(tmp_path, ["1", "2", "3"], **files)
    with pytest.raises(DataError, match="not one of the labels no, yes"):
        read(tmp_path, None, train_csv=GOOD, test_csv="sentence,label\na,1\n")


def test_quotation_marks_are_text_in_a_tab_separated_file(tmp_path: Path) -> None:
    splits = read(tmp_path, train_tsv='sentence\tlabel\n" a quote\tx\nb\ty\nc "d"\tx\n')
    assert splits.raw["train"].rows["sentence"][:] == ['" a quote', "b", 'c "d"']


def test_the_name_of_a_folder_is_not_a_glob_pattern(tmp_path: Path) -> None:
    (tmp_path / "dir [v2]").mkdir()
    assert read(tmp_path / "dir [v2]", train_csv=GOOD).raw["train"].rows.num_rows == 2


def test_held_out_rows_keep_their_numbers_and_classes_their_rows(tmp_path: Path) -> None:
    labels = ["a"] * 30 + ["b"] * 9 + ["c"]
    lines = "".join(f"text {n},{label}\n" for n, label in enumerate(labels, start=1))
    data = section(tmp_path, train_csv=f"sentence,label\n{lines}").model_copy(update={"validation_size": 0.3})
    splits = read_labeled(data, SINGLE, None, seed=1)
    for raw in splits.raw.values():
        assert raw.numbers is not None
        assert [f"text {number}" for number in raw.numbers] == raw.rows["sentence"][:]
    assert np.bincount(splits.labels["validation"]).tolist() == [9, 3]  # of 30, 9 and 1; each class keeps a row
    assert "c" in [splits.label_names[label] for label in splits.labels["train"]]
    with pytest.raises(DataError, match=r"data\.validation_size: 0\.1 of 2 training rows is less than one row"):
        read_labeled(section(tmp_path, train_csv=GOOD).model_copy(update={"validation_size": 0.1}), SINGLE, None, 0)


def test_too_many_labels_suggest_regression() -> None:
    raw = RawSplit(datasets.Dataset.from_dict({"label": [f"{n}.5" for n in range(1001)]}), "here")
    with pytest.raises(DataError, match=r"1001 different labels .*regression"):
        label_names(raw, "label", SINGLE, None)


def test_multi_label_rows_become_label_sets(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "label": ["x", "z"]}, {"sentence": "b", "label": []}, {"sentence": "c", "label": ["y"]}]
    splits = read(tmp_path, None, "multi_label_classification", train_jsonl=rows)
    assert splits.labels["train"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert label_counts(splits.labels["train"], splits.label_names) == {"x": 1, "y": 1, "z": 1}
    vectors = [{"sentence": "a", "label": [0, 0, 1]}, {"sentence": "b", "label": [1, 1, 0]}]
    with pytest.raises(
        DataError, match=r"every row of column 'label' has 3 entries.* 0 or 1: vectors of zeros and ones"
    ):
        read(tmp_path, ["x", "y", "z"], "multi_label_classification", train_jsonl=vectors)
    repeated = [{"sentence": "a", "label": ["x", "y", "x"]}, {"sentence": "b", "label": ["y"]}]
    again = read(tmp_path, ["x", "y"], "multi_label_classification", train_jsonl=repeated)
    assert again.labels["train"].tolist() == [[1, 1], [0, 1]]
    ids = [{"sentence": "a", "label": [0, 1, 1]}, {"sentence": "b", "label": [1]}]
    for declared in (["x", "y"], None):
        with pytest.raises(DataError, match=r"row 1: a number is listed twice"):
            read(tmp_path, declared, "multi_label_classification", train_jsonl=ids)
    with pytest.raises(DataError, match="has no label in column 'label'"):
        read(tmp_path, None, "multi_label_classification", train_jsonl=[{"sentence": "a", "label": []}])
    with pytest.raises(
        DataError, match=r"every row has one label in column 'label' .*; write several labels in a cell as a;b"
    ):
        read(tmp_path, None, "multi_label_classification", train_csv=GOOD)
    with pytest.raises(DataError, match=r"row 1: .*give one label per row"):
        read(tmp_path, None, SINGLE, train_jsonl=rows)


def test_regression_needs_numbers(tmp_path: Path) -> None:
    splits = read(tmp_path, None, "regression", train_csv="sentence,label\na,1.5\nb,-2\n")
    assert splits.labels["train"].tolist() == [1.5, -2.0]
    with_spaces = read(tmp_path, None, "regression", train_csv="sentence,label\na, 1.5\nb,2\n")
    assert with_spaces.labels["train"].tolist() == [1.5, 2.0]
    with pytest.raises(DataError, match=r"row 1: 'nan' in column 'label' is not a number"):
        read(tmp_path, None, "regression", train_csv="sentence,label\na,nan\nb,2\n")
    with pytest.raises(DataError, match=r"row 1: .*contains a list; give one label per row"):
        read(tmp_path, None, "regression", train_jsonl=[{"sentence": "a", "label": [1.0]}])
    with pytest.raises(DataError, match=r"train\.csv row 2: 'high' in column 'label' is not a number"):
        read(tmp_path, None, "regression", train_csv="sentence,label\na,1.5\nb,high\n")


def test_held_out_rows_and_limits(tmp_path: Path) -> None:
    lines = "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(100))
    data = section(tmp_path, train_csv=f"sentence,label\n{lines}", test_csv=f"sentence,label\n{lines}")
    data = data.model_copy(update={"validation_size": 0.2, "max_train_samples": 30, "max_eval_samples": 10})
    first, second = (read_labeled(data, SINGLE, None, seed=1) for _ in range(2))
    assert {name: raw.rows.num_rows for name, raw in first.raw.items()} == {"train": 30, "test": 10, "validation": 10}
    for name in first.raw:
        texts = first.raw[name].rows["sentence"][:]
        assert texts == second.raw[name].rows["sentence"][:]
        expected = [int(text.split()[1]) % 2 for text in texts]
        assert first.labels[name].tolist() == expected
    assert not set(first.raw["train"].rows["sentence"]) & set(first.raw["validation"].rows["sentence"])


def test_label_counts_of_regression_are_none() -> None:
    assert label_counts(np.array([0.5]), ["value"]) == {}
