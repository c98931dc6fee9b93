"""Folders of data files and data sets on the hub: finetune/data/named_dataset.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from finetune.data.first_rows import check_first_rows
from finetune.data.loading import read_splits
from finetune.data.splits import read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.written_rows import write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Write files NAME_ENDING into a folder, and return its path."""

    def write(**files: str) -> str:
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        return str(tmp_path)

    return write


SINGLE = "single_label_classification"
CSV = "sentence,label\nNA,007\nnull,1\n2020-01-01,007\n"


def named(name: str, **keys: Any) -> dict[str, list[tuple[str, str]]]:
    splits = read_splits(DataSection(dataset_name=name, **keys))
    return {s: list(zip(raw.rows["sentence"][:], raw.rows["label"][:], strict=True)) for s, raw in splits.items()}


def test_a_folder_of_files_is_read_like_the_files(folder: Callable[..., str], tmp_path: Path) -> None:
    splits = named(folder(train_csv=CSV, validation_csv=CSV, test_csv="text\nunread\n"))
    assert splits["train"] == splits["validation"] == [("NA", "007"), ("null", "1"), ("2020-01-01", "007")]
    part = read_splits(DataSection(dataset_name=str(tmp_path), train_split="train[1:]"))["train"]
    assert (part.rows["sentence"][:], part.row_numbers().tolist()) == (["null", "2020-01-01"], [2, 3])
    with pytest.raises(DataError, match=r"cannot load .*split dev.*give the names of its splits"):
        named(str(tmp_path), validation_split="dev")
    with pytest.raises(DataError, match=r"test\.csv has no column 'sentence'"):
        named(str(tmp_path), validation_split="test[:1]")
    (tmp_path / "validation.csv").write_text("sentence,label\na\n")
    with pytest.raises(DataError, match=r"validation\.csv row 1 \(line 2\) has 1 cell"):
        named(str(tmp_path))


def test_the_validation_split_of_a_folder_is_not_ignored(folder: Callable[..., str], tmp_path: Path) -> None:
    train = folder(train_csv=CSV)
    assert list(named(train, validation_size=0.5)) == ["train"]  # the held-out rows are sampled later
    (tmp_path / "validation.csv").write_text(CSV)
    with pytest.raises(DataError, match=r"validation_size holds out .* has a split 'validation'; remove"):
        named(train, validation_size=0.5)
    assert list(named(train, validation_size=0.5, validation_split=None)) == ["train"]
    assert list(named(train)) == ["train", "validation"]


def test_rows_are_held_out_if_a_dataset_has_no_validation_split(folder: Callable[..., str]) -> None:
    data = DataSection(dataset_name=folder(train_csv="sentence,label\n" + "a,x\nb,y\n" * 10))
    splits = read_labeled(data, "single_label_classification", None, seed=0)
    assert {name: len(raw.rows) for name, raw in splits.raw.items()} == {"train": 16, "validation": 4}
    assert splits.held_out == 0.2
    with pytest.raises(DataError, match=r"cannot load .*split validation"):
        named(str(data.dataset_name), validation_size=None)


README = """---
dataset_info:
  features:
  - {name: sentence, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': neg, '1': pos}}}
---
"""


def test_class_names_in_the_readme_of_a_folder_are_used(folder: Callable[..., str]) -> None:
    data = DataSection(
        dataset_name=folder(README_md=README, train_csv="sentence,label\na,1\nb,0\n"),
        validation_split=None,
        validation_size=None,
    )
    splits = read_labeled(data, "single_label_classification", None, seed=0)
    assert (splits.label_names, splits.labels["train"].tolist()) == (["neg", "pos"], [1, 0])


def test_saved_data_sets_are_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"sentence": ["NA", "b", "c", "d"], "label": ["x", "y", "x", "y"]})
    rows.save_to_disk(str(tmp_path / "one"))
    both = datasets.DatasetDict({"train": rows, "dev": rows.select([1, 0])})
    both.save_to_disk(str(tmp_path / "two"))
    assert named(str(tmp_path / "one")) == {"train": [("NA", "x"), ("b", "y"), ("c", "x"), ("d", "y")]}
    splits = named(str(tmp_path / "two"), train_split="train[1:3]+dev[:1]", validation_split="dev")
    assert splits == {"train": [("b", "y"), ("c", "x"), ("b", "y")], "validation": [("b", "y"), ("NA", "x")]}
    with pytest.raises(DataError, match=r"cannot load .*two \(split validation\): .*give the names of its splits"):
        named(str(tmp_path / "two"), validation_size=None)
    with pytest.raises(DataError, match=r"data\.dataset_revision is for a data set on the hub, but .*one is a folder"):
        named(str(tmp_path / "one"), dataset_revision="main")


def test_a_folder_may_have_compressed_and_arrow_files(tmp_path: Path) -> None:
    rows = [{"sentence": f"t{n}", "label": "xy"[n % 2]} for n in range(4)]
    write_rows(tmp_path, rows, "csv with semicolons", ".gz", name="train")
    write_rows(tmp_path, rows[:2], "csv", ".zst", name="test")
    splits = named(str(tmp_path), test_split="test")
    assert {split: len(values) for split, values in splits.items()} == {"train": 4, "test": 2}


def test_check_reads_local_data_sets_like_training(folder: Callable[..., str], tmp_path: Path) -> None:
    path = folder(train_csv="sentence,label\n" + "a,x\nb,y\n" * 10, validation_csv="sentence,label\nc,x\nd,y\n")
    checked = check_first_rows(DataSection(dataset_name=path), SINGLE, None)
    assert (checked.train, checked.labels, checked.validation, checked.has_validation) == (20, 2, 2, True)
    (tmp_path / "validation.csv").write_text("sentence,label\nc,x\n,y\n")
    for check in (lambda data: check_first_rows(data, SINGLE, None), read_splits):
        with pytest.raises(DataError, match=r"^.* \(split validation\) row 2: column 'sentence' is empty"):
            check(DataSection(dataset_name=path))
        with pytest.raises(DataError, match=r"cannot load .*split dev"):
            check(DataSection(dataset_name=path, validation_split="dev"))
    saved = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": ["x", ""]})
    saved.save_to_disk(str(tmp_path / "saved"))
    data = DataSection(dataset_name=str(tmp_path / "saved"), validation_size=None, validation_split=None)
    with pytest.raises(DataError, match=r"saved \(split train\) row 2: column 'label' is empty"):
        check_first_rows(data, SINGLE, None)
    part = DataSection(dataset_name=path, train_split="train[:2]")
    assert check_first_rows(part, SINGLE, None).notes == [f"not checked: the rows of dataset '{path}'"]


def test_configuration_and_revision_are_those_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[object, ...]] = []

    def load(name: str, config: str, *, split: str, revision: str) -> datasets.Dataset:
        loaded.append((name, config, split, revision))
        return datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": ["x", "y"]})

    def split_names(name: str, config: str, *, revision: str) -> list[str]:
        loaded.append((name, config, revision))
        return ["train", "test"]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", split_names)
    named("a/b", dataset_config_name="de", dataset_revision="v2", test_split="test")
    assert loaded == [("a/b", "de", "v2"), ("a/b", "de", "train", "v2"), ("a/b", "de", "test", "v2")]


def test_an_unreachable_hub_is_reported() -> None:
    with pytest.raises(DataError, match=r"cannot load nobody/nothing: .*data\.train_file"):
        read_splits(DataSection(dataset_name="nobody/nothing"))
    with pytest.raises(DataError, match=r"cannot load nobody/nothing \(split train\).*data\.train_file"):
        read_splits(DataSection(dataset_name="nobody/nothing", validation_split="dev"))


@pytest.mark.parametrize("name", ["csv", "json", "parquet", "pandas", "text"])
def test_the_name_of_a_file_format_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "train.csv").write_text("sentence,label\na,b\n")  # the library would read this file
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"data\.dataset_name '{name}' is a file format, .* data\.train_file"):
        read_splits(DataSection(dataset_name=name))
