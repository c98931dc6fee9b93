"""Splits, label names and lengths for a new recipe: finetune/pipeline/recipe_draft.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.column_roles import SINGLE, UsedColumns
from finetune.data.preview import Preview, PreviewColumn, read_preview
from finetune.pipeline.recipe_draft import (
    Draft,
    Length,
    class_imbalance,
    has_unlabeled_rows,
    label_counts,
    names_of_ids,
    propose_length,
    sibling_splits,
)
from finetune.recipe.loader import load_recipe, yaml_text

USED = UsedColumns("sentence", None, "label", SINGLE)
ROWS = "sentence,label\na b,x\nc d,y\n"


def preview(values: Sequence[object], name: str = "label", folder: Path = Path()) -> Preview:
    texts = [f"text {number}" for number in range(len(values))]
    columns = {"sentence": PreviewColumn("sentence", texts), name: PreviewColumn(name, values)}
    return Preview(folder / "d.csv", columns, len(values), complete=True)


@pytest.mark.parametrize(
    ("train", "others", "expected"),
    [
        ("train.csv", ["validation.csv", "test.csv"], {"validation": "validation.csv", "test": "test.csv"}),
        ("train.csv", ["dev.csv", "test.tsv"], {"validation": "dev.csv"}),
        ("sst2_train.csv", ["sst2_valid.csv", "test.csv"], {"validation": "sst2_valid.csv"}),
        ("Train-1.csv", ["val-1.csv"], {"validation": "val-1.csv"}),
        ("reviews.csv", ["validation.csv", "test.csv"], {}),
        ("trainers.csv", ["testers.csv"], {}),
    ],
)
def test_files_beside_a_training_file_are_found(
    train: str, others: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    for name in (train, *others):
        (tmp_path / name).write_text(ROWS)
    found, notes = sibling_splits(read_preview(tmp_path / train), USED)
    assert {split: other.file.name for split, other in found.items()} == expected
    assert notes == []


def test_files_without_labels_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "validation.csv").write_text("sentence\na b\n")
    (tmp_path / "test.csv").write_text("sentence,label\na b,-1\nc d,-1\n")
    found, notes = sibling_splits(read_preview(tmp_path / "train.csv"), USED)
    assert found == {}
    assert [note.partition(" is not used: ")[2] for note in notes] == [
        "it has no column label", "its rows have no labels",
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "test.csv").write_text("")
    found, (note,) = sibling_splits(read_preview(tmp_path / "train.csv"), USED)
    assert found == {}
    assert note.startswith(f"the test file is not used: {tmp_path / 'test.csv'} is empty (0 bytes)")


@pytest.mark.parametrize(
    ("column", "values", "file", "names", "is_used"),
    [
        ("label", [0, 1, 1], "labels.json", ["no", "yes"], True),
        ("label", ["0", "1.0"], "label.json", ["no", "yes"], True),
        ("label_fine", [0, 2], "labels_fine.json", ["a", "b", "c"], True),
        ("labels", [[0, 1], []], "labels.json", ["a", "b"], True),
        ("label", [0, 2], "labels.json", ["no", "yes"], False),  # an id without a name
        ("label", ["no", "yes"], "labels.json", ["no", "yes"], False),  # the names themselves
        ("label", [0, 1], "labels.json", ["1", "2"], False),  # would be read as labels, not ids
        ("label", [0, 1], "labels.json", ["no", "no"], False),
        ("label", [0, 1], "labels.json", {"0": "no", "1": "yes"}, False),
        ("label", [0, 1], "other.json", ["no", "yes"], False),
        ("../label", [0, 1], "labels.json", ["no", "yes"], False),
    ],
)
def test_names_of_ids_are_read_from_a_file_beside_the_data(
    column: str, values: list[object], file: str, names: object, is_used: bool, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / file).write_text(json.dumps(names))
    used = UsedColumns("sentence", None, column, SINGLE)
    found = names_of_ids(preview(values, column, tmp_path / "sub"), used)
    assert found == ((names, tmp_path / "sub" / file) if is_used else None)


def test_a_names_file_that_is_not_json_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("[")
    assert names_of_ids(preview([0, 1], folder=tmp_path), USED) is None


def test_the_length_is_measured_with_the_tokenizer(tiny_bert: Path) -> None:
    texts = ["the cat sat"] * 99 + ["the cat sat on the mat " * 3]
    long = Preview(Path("d.csv"), {"sentence": PreviewColumn("sentence", texts)}, 100, complete=True)
    length = propose_length(long, USED, str(tiny_bert))
    assert length == Length(16, "99 % of the rows have at most 4 tokens (measured with the tokenizer of the model)")
    longer = Preview(Path("d.csv"), {"sentence": PreviewColumn("sentence", ["the cat " * 20] * 3)}, 3, complete=True)
    length = propose_length(longer, USED, str(tiny_bert))
    assert length == Length(32, "the model's limit; 100% of the rows are longer and are truncated")


def test_the_length_is_estimated_without_a_tokenizer() -> None:
    columns = {name: PreviewColumn(name, ["one two three four five", None]) for name in ("a", "b")}
    pairs = Preview(Path("d.csv"), columns, 2, complete=True)
    length = propose_length(pairs, UsedColumns("a", "b", "label", SINGLE), "some/model")
    assert length == Length(32, "99 % of the rows have at most 17 tokens (estimated from the number of words)")


def test_imbalance_is_the_ratio_of_the_class_sizes() -> None:
    assert class_imbalance({"x": 30, "y": 2}) == 15
    assert class_imbalance({}) == 1


@pytest.mark.parametrize(
    ("values", "train", "unlabeled"),
    [
        ([0, 1], [0, 1], False),
        (["x", None], ["x", "y"], True),
        ([0, 1, -1], [0, 1], True),
        ([0, 1, -1], [0, 1, -1], True),
        ([-1, 1], [-1, 1], False),
        ([[], ["x"]], [["x"]], False),
    ],
)
def test_rows_without_a_label_are_recognized(values: list[object], train: list[object], unlabeled: bool) -> None:
    columns = PreviewColumn("label", values), PreviewColumn("label", train)
    assert has_unlabeled_rows(*columns) == unlabeled


def test_the_mark_of_unlabeled_rows_is_not_counted() -> None:
    column = PreviewColumn("label", [0, 1, -1, 0])
    assert label_counts(column, unlabeled=True) == {"0": 2, "1": 1}
    assert label_counts(column, unlabeled=False) == {"0": 2, "1": 1, "-1": 1}


def test_every_decision_is_in_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("a,b,label\nx,y,0\nx,y,1\n")
    draft = Draft(
        model="some/model",
        used=UsedColumns("a", "b", "label", SINGLE),
        files={"train": file, "test": file},
        validation_size=0.1,
        length=Length(32, "a reason"),
        label_names=(["no", "1e5"], tmp_path / "labels.json"),
        unlabeled=True,
        imbalance=25.0,
    )
    text = draft.text()
    path = tmp_path / "my.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    assert (recipe.data.text_column, recipe.data.text_pair_column, recipe.data.label_column) == ("a", "b", "label")
    assert (recipe.data.train_file, recipe.data.test_file, recipe.data.validation_file) == (str(file), str(file), None)
    assert (recipe.data.validation_size, recipe.data.max_length, recipe.data.drop_unlabeled) == (0.1, 32, True)
    assert recipe.task.label_names == ["no", "1e5"]
    assert "# The largest class has 25 times the rows of the smallest. For equal weights:\n" in text
    suggested = "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith(("# tr", "# peft")))
    path.write_text(f"{text}\n{suggested}\n")
    recipe = load_recipe(path)
    assert recipe.training.class_weights == "balanced"
    assert recipe.peft is not None


@settings(max_examples=50)
@given(text=st.text(min_size=1))
def test_any_text_survives_as_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    rows = "[{sentence: a}]"
    model = f"model: {{model_name_or_path: a/b, revision: {yaml_text(text)}}}\n"
    path.write_text(f"{model}data: {{train_rows: {rows}, validation_rows: {rows}}}\n", encoding="utf-8")
    assert load_recipe(path).model.revision == text


@pytest.mark.parametrize("text", ["no", "Null", "1e5", "1", "a b", "~", "a: b", "[a]", "#a", "-", "a:", " a"])
def test_texts_with_another_meaning_are_quoted(text: str) -> None:
    assert yaml_text(text).startswith('"')
    assert yaml.safe_load(yaml_text(text)) == text


@pytest.mark.parametrize("text", ["sentence", "package:a_b/model", "/data/train-1.csv", "ABBR:abb", "bert-base"])
def test_simple_words_and_paths_are_plain(text: str) -> None:
    assert yaml_text(text) == text
