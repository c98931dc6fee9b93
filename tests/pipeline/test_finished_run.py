from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from finetune.cli import main
from finetune.errors import DataError, ModelError, RecipeError, TrainingError
from finetune.evaluation.prediction import predict
from finetune.pipeline.finished_run import finished_recipe
from finetune.pipeline.merge import merge
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import contents, read_back
from tests.support.helpers import FLOAT32


def test_a_finished_run_is_opened_unchanged(lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "moved"))
    before = contents(run)
    finished_run = read_back(run, "head_importance.method=fisher")
    assert finished_run.context.folder.path == run
    assert finished_run.context.recipe.seed == 4
    assert finished_run.context.recipe.head_importance is not None
    assert finished_run.context.recipe.head_importance.methods() == ["fisher"]
    assert {name: len(split) for name, split in finished_run.inputs.splits.items()} == {
        "train": 48, "validation": 40, "test": 40,
    }  # fmt: skip
    scores = json.loads(before["scores.json"])
    for name, split in finished_run.inputs.held_out_splits().items():
        values = predict(
            finished_run.inputs.classifier, split, batch_size=64, accelerator=finished_run.context.accelerator
        ).metrics()
        assert values["accuracy"] == scores[name]["metrics"]["accuracy"]["value"]
        assert values["loss"] == pytest.approx(scores[name]["loss"], rel=FLOAT32)
    assert np.bincount(finished_run.inputs.splits["train"].labels).tolist() == [24, 24]
    assert contents(run) == before


def test_all_files_of_a_run_have_the_permissions_of_any_new_file(lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    files = [path for path in lora_run.rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "scores.json", "predictions.parquet"} <= {file.name for file in files}
    mode = (tmp_path / "new").stat().st_mode
    assert [file.name for file in files if file.stat().st_mode != mode] == []


def test_a_folder_without_a_finished_run_is_an_error(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    shutil.rmtree(run / "model")
    with pytest.raises(DataError, match=r"run is not a finished run \(no model\); name the folder that `train` wrote"):
        read_back(run)
    with pytest.raises(DataError, match="nowhere is not a finished run \\(there is no such folder"):
        read_back(tmp_path / "nowhere")


def test_an_override_that_needs_missing_rows_is_rejected(small_run: Path) -> None:
    with pytest.raises(DataError, match=r"head_importance\.split is test, but there are no test rows"):
        read_back(small_run, "head_importance.split=test", "data.test_rows=null")
    with pytest.raises(RecipeError, match=r"'fishr'.*did you mean 'fisher'"):
        read_back(small_run, "head_importance.method=fishr")


@pytest.fixture
def received(lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run whose folder allows its own model code, and the file that this code would create if it were executed."""
    run, executed = Path(shutil.copytree(lora_run, tmp_path / "received")), tmp_path / "ran"
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (run / "model" / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    (run / "model" / "own.py").write_text(
        f"from pathlib import Path\nPath({str(executed)!r}).touch()\nraise ImportError\n"
    )
    classifier_json = json.loads((run / "model" / "classifier.json").read_text())
    classifier_json["source"] |= {"trust_remote_code": True, "use_safetensors": False}
    (run / "model" / "classifier.json").write_text(json.dumps(classifier_json))
    recipe = (run / "recipe.yaml").read_text()
    assert "trust_remote_code: false" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("trust_remote_code: false", "trust_remote_code: true"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return run, executed


def test_a_folder_cannot_allow_its_own_code(received: tuple[Path, Path]) -> None:
    run, executed = received
    for load in (read_back, merge):
        with pytest.raises(ModelError, match=r"allow it with model\.trust_remote_code: true"):
            load(run)
        assert not executed.exists()
    with pytest.raises(ModelError, match="cannot load model"):
        read_back(run, "model.trust_remote_code=true")
    assert executed.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], (False, True)),
        (["data.max_length=16"], (False, True)),
        (["model.trust_remote_code=true"], (True, True)),
        ([" model.use_safetensors =false"], (False, False)),
        (["model.use_safetensors=false", "model.trust_remote_code=true"], (True, False)),
    ],
)
def test_only_overrides_set_trust(changes: list[str], expected: tuple[bool, bool], received: tuple[Path, Path]) -> None:
    text = (received[0] / "recipe.yaml").read_text()
    (received[0] / "recipe.yaml").write_text(text.replace("use_safetensors: true", "use_safetensors: false"))
    model = finished_recipe(RunFolder(received[0]), changes).model
    assert (model.trust_remote_code, model.use_safetensors) == expected


def test_a_moved_base_checkpoint_is_set_by_an_override(lora_run: Path, tiny_bert: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    file = run / "model" / "classifier.json"
    file.write_text(file.read_text().replace(str(tiny_bert), str(tmp_path / "missing")))
    with pytest.raises(ModelError, match=r"cannot load model '.*missing'"):
        read_back(run)
    finished_run = read_back(run, f"model.model_name_or_path={tiny_bert}")
    assert finished_run.inputs.classifier.source is not None
    assert finished_run.inputs.classifier.source.name == str(tiny_bert)


def test_a_tokenizer_with_unknown_ids_is_rejected(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    file = run / "model" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "another"}))  # so it gets a new id
    for command in (read_back, merge):
        with pytest.raises(
            ModelError, match=r"has ids up to \d+ \('another'\), but the model has embeddings for ids 0 to"
        ):
            command(run)


def test_a_max_length_above_that_of_the_model_is_rejected(lora_run: Path) -> None:
    with pytest.raises(ModelError, match=r"data\.max_length is 33, but .* takes 32 tokens"):
        read_back(lora_run, "data.max_length=33")


def test_overrides_adapt_a_run_to_another_machine(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was trained in fp16 on a GPU, with large batches, and whose data files have been moved."""
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    rows = {}
    for split in ("train", "validation", "test"):
        rows[split] = tmp_path / f"{split}.jsonl"
        rows[split].write_text("".join(json.dumps(row) + "\n" for row in content["data"].pop(f"{split}_rows")))
        content["data"][f"{split}_file"] = f"/missing/{split}.jsonl"
    content["training"] |= {"mixed_precision": "fp16", "use_cpu": False}
    content["evaluation"]["per_device_eval_batch_size"] = 4096
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    before = contents(run)
    file_overrides = [f"data.{split}_file={file}" for split, file in rows.items()]
    with pytest.raises(RecipeError, match=r"there is no file '/missing/train\.jsonl'"):
        read_back(run, "training.mixed_precision=no")
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        read_back(run, *file_overrides)
    finished_run = read_back(
        run, *file_overrides, "training.mixed_precision=no", "evaluation.per_device_eval_batch_size=2"
    )
    assert finished_run.context.recipe.training.mixed_precision == "no"
    assert finished_run.context.recipe.evaluation.per_device_eval_batch_size == 2
    assert "The rows differ" not in capsys.readouterr().out
    first_rows = rows["test"].read_text().splitlines(keepends=True)[:3]
    rows["test"].write_text("".join(first_rows))
    read_back(run, *file_overrides, "training.mixed_precision=no")
    assert "The rows differ from those at training: test." in capsys.readouterr().out
    read_back(run, "data.test_file=null", *file_overrides[:2], "training.mixed_precision=no")
    assert "The rows differ from those at training: test." in capsys.readouterr().out
    assert contents(run) == before
    assert main(["report", str(run)]) == 0  # it reads no rows


def test_the_hint_on_truncated_rows_and_the_lengths_that_earlier_versions_lack_are_no_difference_of_rows(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    summary = json.loads((run / "data.json").read_text())
    summary["test"]["truncation_hint"] = "raise data.max_length to 32"
    del summary["validation"]["true_lengths"], summary["validation"]["truncation_hint"]
    (run / "data.json").write_text(json.dumps(summary))
    opened = read_back(run)
    assert "The rows differ" not in capsys.readouterr().out
    assert opened.inputs.summary["test"].truncation_hint == "raise data.max_length to 32"
    summary["test"]["true_lengths"]["100"] += 1
    (run / "data.json").write_text(json.dumps(summary))
    read_back(run)
    assert "The rows differ from those at training: test." in capsys.readouterr().out


def test_scores_of_an_earlier_version_are_compared_by_their_values(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    scores = json.loads((run / "scores.json").read_text())
    for entry in scores.values():
        assert "warnings" in entry
        del entry["warnings"]
        entry["interval_note"] = "another wording"
    right, lowest = scores["test"]["loss"], scores["test"]["metrics"]["accuracy"]["low"]
    for loss, low, sentence in (
        (right, lowest, "identical, to the last digit, to the previous ones in the folder."),
        (
            right,
            0.0625,
            "identical, to the last digit, to the previous ones in the folder; only their intervals differ.",
        ),
        (0.5, lowest, "different from the previous ones in the folder."),
    ):
        scores["test"]["loss"], scores["test"]["metrics"]["accuracy"]["low"] = loss, low
        (run / "scores.json").write_text(json.dumps(scores))
        assert main(["evaluate", str(run), "head_importance=null"]) == 0
        assert f"These scores are {sentence}" in " ".join(capsys.readouterr().out.split())


def test_the_training_rows_are_scored_too_if_the_recipe_says_so(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    before = json.loads((run / "scores.json").read_text())
    predictions = (run / "predictions.parquet").read_bytes()
    options = ["evaluation.score_training_rows=true", "head_importance=null"]
    assert main(["evaluate", str(run), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "train (48 rows)" in printed
    assert "identical, to the last digit, to" in printed
    scores = json.loads((run / "scores.json").read_text())
    assert [*scores] == ["validation", "test", "train"]
    assert {name: scores[name] for name in before} == before
    training = scores["train"]
    assert (training["rows"], training["warnings"], training["above_constant"]) == (48, [], None)
    finished_run = read_back(run)
    split = finished_run.inputs.splits["train"]
    accelerator = finished_run.context.accelerator
    expected = predict(finished_run.inputs.classifier, split, batch_size=64, accelerator=accelerator).metrics()
    assert training["metrics"]["accuracy"]["value"] == expected["accuracy"]
    assert (run / "predictions.parquet").read_bytes() == predictions
    assert "not how well it does on new rows" in (run / "report.html").read_text()
    card = (run / "README.md").read_text()
    assert "not how well it does on new rows" in card
    assert "split: train" not in card  # the hub shows results on held-out rows only


def test_a_run_stores_the_cost_of_its_model(lora_run: Path) -> None:
    training = json.loads((lora_run / "training.json").read_text())
    assert training["flops_per_row"] > 0
    speed, steps = training["speed"], training["steps"]
    assert training["seconds_per_epoch"] == pytest.approx(speed["train_seconds"] * (48 / 4) / steps)
    html = (lora_run / "report.html").read_text()
    assert "Training time per epoch:" in html
    assert "floating-point operations per row" in html
