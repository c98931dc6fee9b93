"""`finetune check`: the model, the rows and the output directory, without torch: finetune/pipeline/check.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from finetune.cli import main
from tests.support.finished_runs import SCRATCH


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path) -> Path:
    (tmp_path / "rows.csv").write_text("text,label\na b,x\nc d,y\ne f,x\ng h,y\n")
    data = {"train_file": str(tmp_path / "rows.csv"), "text_column": "text", "validation_size": 0.5, "max_length": 16}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({"model": {"model_name_or_path": str(tiny_bert)}, "data": data}))
    return path


def test_a_recipe_that_can_be_trained_is_valid(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe)]) == 0
    valid, heading, *settings = capsys.readouterr().out.splitlines()
    assert valid.startswith(f"{recipe} is valid. Output directory: ")
    assert (
        heading == "  Settings that the recipe leaves to auto:"
    )  # everything was checked, so there are no other notes
    assert [line.split()[0] for line in settings] == [
        "per_device_train_batch_size", "num_train_epochs", "learning_rate", "warmup_steps", "early_stopping_patience",
        "best_model_tolerance",
    ]  # fmt: skip


def test_the_settings_are_those_of_training_and_the_resolved_recipe_repeats_it(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["data.validation_size=auto", "training.max_steps=2", "training.use_cpu=true", "head_importance=null"]
    changes += ["evaluation.baselines=null"]
    assert main(["check", str(recipe), *changes]) == 0
    settings = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(settings) == 6
    assert settings[1].split()[:2] == ["validation_size", "0.2"]
    assert main(["train", str(recipe), *changes, f"output_dir={recipe.parent / 'run'}"]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert settings == [line for line in printed if line in settings]
    run, again = recipe.parent / "run", recipe.parent / "again"
    assert main(["train", str(run / "recipe.yaml"), f"output_dir={again}"]) == 0
    assert "left to auto" not in capsys.readouterr().out  # the resolved recipe has plain numbers
    weights = "model/model.safetensors"
    assert (again / weights).read_bytes() == (run / weights).read_bytes()
    assert (again / "predictions.parquet").read_bytes() == (run / "predictions.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.text_column=sentence", "has no column 'sentence' (data.text_column); it has text, label"),
        ("data.max_length=33", "data.max_length is 33, but"),
        ("data.label_column=text", "text and label columns must differ"),
        ("task.problem_type=regression", "regression needs numbers"),
        ("training.reinit_layers=3", "training.reinit_layers is 3, but this 'bert' model has 2 layers; lower it"),
        ("training.freeze_layers=3", "training.freeze_layers is 3, but this 'bert' model has 2 layers; lower it"),
        ("model.classifier_init=linear_probe", "model.classifier_init is linear_probe, but model.pooling is head"),
        (
            "training={lr_scheduler_type: polynomial, lr_scheduler_kwargs: {lr_end: 1}}",
            "training.lr_scheduler_kwargs: lr_end is 1; it must be below training.learning_rate, 0.002; lower it",
        ),
        ("model.model_type=gpt2", "model type 'gpt2' is not supported"),
        ("model.model_name_or_path=package:nowhere/x", "package 'nowhere' is not installed; run `pip install nowhere`"),
    ],
)
def test_what_training_would_find_is_found(
    recipe: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), change]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err


def test_what_was_not_checked_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["model.model_name_or_path=some/model", "data.dataset_name=some/rows", "data.validation_size=auto"]
    assert main(["check", str(recipe), *changes]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  not checked: model 'some/model', because it is not in the cache of the hub",
        "  not checked: the rows of dataset 'some/rows'",
    ]


def test_a_new_model_needs_no_checkpoint(recipe: Path) -> None:
    assert main(["check", str(recipe), f"model.model_type={SCRATCH['model_type']}"]) == 0
