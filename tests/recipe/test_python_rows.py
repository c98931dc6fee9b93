"""Rows from Python: finetune/recipe/python_rows.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from finetune.data.splits import read_labeled
from finetune.errors import DataError, TrainingError
from finetune.recipe.loader import load_recipe
from finetune.recipe.python_rows import is_written_by_python, write_rows
from finetune.runs.ownership import check_output_dir, take_ownership
from finetune.runs.run_files import read_recipe
from finetune.runs.run_folder import RunFolder
from tests.support.recipes import MINIMAL, WriteRecipe

ROWS = [{"sentence": "a b", "label": "yes"}, {"sentence": "007", "label": "no"}]
CLASSES = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])})
TABLES = {
    "pandas": pd.DataFrame(ROWS, index=[7, 3]),
    "pandas category": pd.DataFrame(ROWS).astype({"label": "category"}),
    "datasets": datasets.Dataset.from_list([{**row, "label": n} for n, row in enumerate(ROWS)], features=CLASSES),
    "datasets, selected": datasets.Dataset.from_list([ROWS[1], ROWS[0]]).select([1, 0]),
    "pyarrow": pa.Table.from_pylist(ROWS),
    "list": ROWS,
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_gives_the_same_rows(kind: str, write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(MINIMAL), rows=TABLES[kind])
    assert (recipe.data.train_rows, recipe.data.validation_rows) == (None, None)
    data = recipe.data.model_copy(update={"validation_size": None})
    labeled = read_labeled(data, "single_label_classification", None, seed=0)
    train = labeled.raw["train"]
    assert list(zip(train.column("sentence").to_pylist(), train.column("label").to_pylist(), strict=True)) == [
        ("a b", "yes"),
        ("007", "no"),
    ]
    assert labeled.label_names == (["yes", "no"] if kind == "datasets" else ["no", "yes"])


def test_splits_are_given_as_a_mapping() -> None:
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    files = write_rows(splits)
    assert {split: Path(file).name for split, file in files.items()} == {
        "train": "train.parquet",
        "test": "test.parquet",
    }
    assert all(map(is_written_by_python, files.values()))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"sentence": ["a"], "label": ["x"]},
            "'sentence' is not one of the splits train, validation and test; give",
        ),
        ({"test": ROWS}, "there is no split train"),
        ("train.csv", r"rows \(train\) is a str; give a pandas DataFrame"),
        (pd.DataFrame({"sentence": ["a", 1]}), r"rows \(train\) cannot be written as a table: .*sentence.* one type"),
        (pd.DataFrame([["a", "b"]], columns=["sentence", "sentence"]), r"rows \(train\) cannot .*: Duplicate column"),
    ],
)
def test_other_rows_are_one_message(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_rows(rows)


def test_a_run_keeps_the_rows(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    run = RunFolder(tmp_path / "run")
    recipe = load_recipe(write_recipe(MINIMAL), [f"output_dir={run.path}"], rows=pd.DataFrame(ROWS))
    check_output_dir(run, recipe)
    take_ownership(run, recipe, {}, {})
    stored = read_recipe(run, read_data=True)
    assert stored.data.train_file == str(run.path / "rows" / "train.parquet")
    moved = RunFolder(tmp_path / "moved, to: here")
    shutil.move(run.path, moved.path)
    assert read_recipe(moved, read_data=True).data.train_file == str(moved.rows / "train.parquet")
    other = tmp_path / "other.csv"
    other.write_text("sentence,label\na,yes\n")
    assert read_recipe(moved, [f"data.train_file={other}"], read_data=True).data.train_file == str(other)
    # The rows may be inside the output folder if the run is resumed; this one stops at its incomplete environment.json.
    for resume, message in (
        ("null", r"data\.train_file is inside output_dir"),
        ("auto", r"environment\.json is damaged"),
    ):
        changes = [f"checkpoint.resume_from_checkpoint={resume}", f'output_dir="{moved.path}"']
        with pytest.raises(TrainingError, match=message):
            check_output_dir(moved, read_recipe(moved, changes, read_data=True))
