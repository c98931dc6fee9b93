"""`finetune check --data`, and the same findings in a run: finetune/pipeline/check_data.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from finetune.cli import main
from finetune.report.run_record import read_record
from finetune.runs.run_folder import RunFolder

# All words are known to the tokenizer. A repeated text with two labels, a class with one row, and a text in both files.
PLACES = ("on the mat", "on the floor", "again", "now", "on it", "clean", "not", "or", "is")
ROWS = "".join(f"the {one} sat {place},{label}\n" for place in PLACES for one, label in (("cat", "x"), ("dog", "y")))
TRAIN = f"text,label\n{ROWS}It sat.,x\nit sat,y\nthe mat,rare\n"
TEST = f"text,label\n{ROWS.replace('sat', 'chased')}the mat!,rare\n"


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path) -> Path:
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    files = {f"{split}_file": str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    content = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(tiny_bert)},
        "data": {**files, "text_column": "text", "validation_size": None, "max_length": 16},
        "training": {"max_steps": 1, "use_cpu": True},
        "evaluation": {"eval_strategy": "no", "baselines": None},
        "head_importance": None,
    }
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_all_rows_are_described(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{recipe} is valid. Output directory: ")
    for expected in (
        "Tokens per row before truncation", "Rows per label (3 labels)", "Warnings:",
        "1 text has different labels in different rows (2 rows)", "- train row 19 [x]: It sat.",
        "train row 20 [y]: it sat", "1 of 3 labels has fewer than 8 training rows, too few to learn: rare (1)",
        "1 row of test (5.3%) has the text of a training row", "`finetune help data-quality` explains them.",
    ):  # fmt: skip
        assert expected in text, expected


def test_strict_makes_warnings_errors(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--data", "--strict"]) == 2
    printed = capsys.readouterr()
    assert "Warnings:" in printed.out
    assert printed.err.startswith(f"error: the data of {recipe} have ")
    assert "with --strict a warning is an error; correct the rows" in printed.err
    (recipe.parent / "train.csv").write_text(f"text,label\n{ROWS}")
    assert main(["check", str(recipe), "--data", "--strict", "data.test_file=null"]) == 0
    assert "No warnings." in capsys.readouterr().out


def test_the_json_is_that_of_a_run_and_its_report_shows_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--data", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["max_length", "suggested_max_length", "splits", "findings", "unchecked", "version"]
    assert (found["version"], found["max_length"]) == (1, 16)
    assert {finding["kind"] for finding in found["findings"]} == {
        "few_training_rows", "few_scored_rows", "conflicting_labels", "repeated_texts", "texts_in_train",
    }  # fmt: skip
    assert main(["train", str(recipe)]) == 0
    assert "4 warnings about the data: see Data quality in the report." in capsys.readouterr().out
    folder = RunFolder(recipe.parent / "run")
    assert json.loads(folder.data_quality.read_text()) == found
    page = folder.report.read_text()
    assert '<section id="data-quality"' in page
    assert "1 text has different labels in different rows" in page
    record = read_record(folder).without_texts()
    assert record.quality is not None
    assert "It sat." not in json.dumps([finding.examples for finding in record.quality.findings])


@pytest.mark.parametrize("option", ["--strict", "--json"])
def test_options_that_need_data(option: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), option]) == 2
    assert capsys.readouterr().err == f"error: {option} is given without --data; add --data to examine the rows\n"


def test_a_new_model_knows_the_words_of_the_training_rows(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ["model={model_type: bert, config_overrides: {max_position_embeddings: 24}}"]
    assert main(["check", str(recipe), "--data", "--json", *new]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"]["train"]["unknown_share"] == 0
    assert found["splits"]["test"]["unknown_share"] > 0


def test_rows_that_training_would_reject_are_one_error(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "test.csv").write_text("text,label\nthe cat,X\n")
    assert main(["check", str(recipe), "--data"]) == 2
    assert "differs from 'x' only in case, spaces or Unicode form: write 'x'" in capsys.readouterr().err
