"""Checks of the first rows without reading whole files: finetune/data/first_rows.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from finetune.data.cell_values import BATCH_ROWS
from finetune.data.first_rows import check_first_rows
from finetune.data.splits import read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
GOOD = "sentence,label\na,x\nb,y\nc,x\n"
LIST = '{"sentence": "a", "label": ["x"]}\n{"sentence": "b", "label": ["y"]}\n'


def data_section(folder: Path, name: str, content: str | bytes, **keys: object) -> DataSection:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataSection.model_validate({"train_file": str(file), "validation_size": None, **keys})


WRONG: list[tuple[str, str | bytes, dict[str, object], str, Sequence[str] | None, str]] = [
    ("a.csv", GOOD, {"text_column": "sentense"}, SINGLE, None, r"has no column 'sentense' .*did you mean 'sentence'"),
    ("a.csv", GOOD, {"label_column": "class"}, SINGLE, None, r"has no column 'class' .*it has sentence, label"),
    ("a.csv", GOOD, {"text_pair_column": "other"}, SINGLE, None, r"has no column 'other' \(data\.text_pair_column\)"),
    ("a.csv", "", {}, SINGLE, None, r"is empty \(0 bytes\)"),
    ("a.csv", "sentence,label\n", {}, SINGLE, None, r"has no rows; add at least one"),
    ("a.csv", b"PK\x03\x04xl/workbook", {}, SINGLE, None, r"an Excel workbook; export the sheet as csv"),
    ("a.csv", "sentence,label\na,x\n ,y\n", {}, SINGLE, None, r"row 2: column 'sentence' is empty"),
    ("a.csv", "sentence,label\na,x\nb,\n", {}, SINGLE, None, r"row 2: column 'label' is empty"),
    ("a.csv", "sentence,label\na,x\nb,x\n", {}, SINGLE, None, r"only the label 'x'"),
    ("a.csv", GOOD, {}, SINGLE, ["x", "z"], r"row 2: label 'y' in column 'label' is not one of the labels x, z"),
    ("a.csv", GOOD, {}, REGRESSION, None, r"row.*'x' in column 'label' is not a number"),
    (
        "a.csv",
        GOOD,
        {},
        MULTI,
        None,
        r"every row has one label .*; write several labels in a cell as a;b .*JSON list .*data\.label_columns",
    ),
    ("a.jsonl", LIST, {}, SINGLE, None, r"contains a list; .*set task\.problem_type: multi_label_classification"),
    ("a.jsonl", "{'sentence': 1}\n{}\n", {}, SINGLE, None, r"is not valid JSON"),
    ("a.parquet", b"PAR1 and then nothing", {}, SINGLE, None, r"cannot be read as parquet"),
    ("a.csv", GOOD, {"validation_size": 0.1}, SINGLE, None, r"0\.1 of 3 training rows is less than one row"),
    (
        "a.csv",
        "sentence,label\na,x\nb,y\n",
        {"validation_size": "auto"},
        SINGLE,
        None,
        r"0\.2 of 2 training rows .*or set evaluation\.eval_strat",
    ),
    ("a.csv", GOOD, {"max_train_samples": 1}, SINGLE, None, r"max_train_samples: 1 is less than the 2 classes"),
]


@pytest.mark.parametrize(("name", "content", "keys", "problem_type", "declared", "message"), WRONG)
def test_the_message_is_that_of_training(
    name: str,
    content: str | bytes,
    keys: dict[str, object],
    problem_type: str,
    declared: Sequence[str] | None,
    message: str,
    tmp_path: Path,
) -> None:
    data = data_section(tmp_path, name, content, **keys)
    with pytest.raises(DataError, match=message) as from_check:
        check_first_rows(data, problem_type, declared)
    with pytest.raises(DataError) as from_training:
        read_labeled(data, problem_type, declared, seed=1)
    assert str(from_check.value) == str(from_training.value)


@pytest.mark.parametrize(
    ("name", "content", "problem_type", "keys"),
    [
        ("a.csv", GOOD, SINGLE, {}),
        ("a.tsv", "sentence\tlabel\na\t1.5\nb\t2\n", REGRESSION, {}),
        ("a.jsonl", LIST, MULTI, {}),
        ("a.csv", "sentence,label\na,x\nb,\nc,y\n", SINGLE, {"drop_unlabeled": True}),
    ],
)
def test_good_rows_leave_no_note(
    name: str, content: str, problem_type: str, keys: dict[str, object], tmp_path: Path
) -> None:
    assert check_first_rows(data_section(tmp_path, name, content, **keys), problem_type, None).notes == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"validation_size": "auto"}, (16, 0.2)),
        ({"validation_size": 0.5}, (10, 0.5)),
        ({"validation_size": None}, (20, None)),
        ({"validation_size": "auto", "max_train_samples": 5}, (5, 0.2)),
    ],
)
def test_the_rows_are_counted_as_in_training(
    keys: dict[str, object], expected: tuple[int, float | None], tmp_path: Path
) -> None:
    data = data_section(tmp_path, "a.csv", "sentence,label\n" + "a,x\nb,y\n" * 10, **keys)
    checked = check_first_rows(data, SINGLE, None)
    assert (checked.train, checked.held_out, checked.labels) == (*expected, 2)
    assert checked.has_validation == (expected[1] is not None)
    splits = read_labeled(data, SINGLE, None, seed=1)
    assert (len(splits.labels["train"]), splits.held_out) == expected


@pytest.mark.parametrize("seed", range(4))
def test_repeated_texts_are_counted_as_in_training(seed: int, tmp_path: Path) -> None:
    rows = "".join(f"text {number // 3},{'xyz'[number % 7 % 3]}\n" for number in range(40))
    data = data_section(tmp_path, "a.csv", f"sentence,label\n{rows}", validation_size="auto")
    checked = check_first_rows(data, SINGLE, None, seed)
    labels = read_labeled(data, SINGLE, None, seed).labels
    assert (checked.train, checked.validation) == (len(labels["train"]), len(labels["validation"]))


def test_rows_in_the_recipe_are_checked() -> None:
    rows = [{"sentence": "a", "label": "x"}, {"sentence": "b", "label": "y"}]
    assert check_first_rows(DataSection(train_rows=rows, validation_rows=rows[:1]), SINGLE, None).notes == []
    wrong = DataSection(train_rows=rows, validation_rows=[{"sentence": "c", "label": "z"}])
    with pytest.raises(DataError, match=r"data\.validation_rows row 1: label 'z' .*not one of the labels x, y"):
        check_first_rows(wrong, SINGLE, None)


def test_a_long_file_is_checked_at_its_beginning_only(tmp_path: Path) -> None:
    first = "".join(f"text {number},x\n" for number in range(BATCH_ROWS))  # sorted by label
    data = data_section(tmp_path, "a.csv", f"sentence,label\n{first}b,y\n,z\n")
    assert check_first_rows(data, SINGLE, None).notes == [f"checked: the first 10,000 rows of {data.train_file}"]
    with pytest.raises(DataError, match=r"row 1, 2, 3.*label 'x'|rows 1, .*label 'x' .*not one of the labels y, z"):
        check_first_rows(data, SINGLE, ["y", "z"])
    with pytest.raises(DataError, match=r"'x' in column 'label' is not a number"):
        check_first_rows(data, REGRESSION, None)


@pytest.mark.parametrize("problem_type", [SINGLE, REGRESSION])
def test_labels_may_begin_after_the_first_rows(problem_type: str, tmp_path: Path) -> None:
    first = "".join(f"text {number},\n" for number in range(BATCH_ROWS))
    data = data_section(tmp_path, "a.csv", f"sentence,label\n{first}a,1\nb,2\n", drop_unlabeled=True)
    assert check_first_rows(data, problem_type, None).notes == [f"checked: the first 10,000 rows of {data.train_file}"]
    assert len(read_labeled(data, problem_type, None, seed=1).labels["train"]) == 2
    exact = data_section(tmp_path, "b.csv", "sentence,label\na,\n", drop_unlabeled=True)
    with pytest.raises(DataError, match=r"has no row with a label in column 'label'; remove this split"):
        check_first_rows(exact, problem_type, None)


def test_class_names_in_a_parquet_file_are_used(tmp_path: Path) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}, features=features)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    data = DataSection(train_file=str(tmp_path / "a.parquet"), validation_size=None)
    assert check_first_rows(data, SINGLE, None).notes == []
    with pytest.raises(DataError, match=r"label 'n' .*not one of the labels x, y"):
        check_first_rows(data, SINGLE, ["x", "y"])


def test_what_is_not_read_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_first_rows(DataSection(dataset_name="a/b"), SINGLE, None).notes == [
        "not checked: the rows of dataset 'a/b'"
    ]
    monkeypatch.setattr("finetune.data.first_rows.MAX_JSON_BYTES", 3)
    data = data_section(tmp_path, "a.json", "[1]\n")
    (note,) = check_first_rows(data, SINGLE, None).notes
    assert note.startswith(f"not checked: the rows of {data.train_file}, because a json file of this size")
