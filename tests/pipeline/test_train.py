"""Complete runs, started from the command line; those that could disturb others, in their own process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.cli import main
from finetune.models import toy_classifier
from tests.support import ROOT
from tests.support.forked import forked
from tests.support.helpers import FLOAT32, TRAINED
from tests.support.processes import start

RECIPES = ROOT / "recipes"
SCRATCH = RECIPES / "toy_from_scratch.yaml"
COMPLETE = {
    "recipe.yaml", "environment.json", "data.json", "data_quality.json", "history.jsonl", "checkpoints",
    "model", "training.json", "outputs.json", "scores.json", "baselines.json", "predictions.parquet",
    "label_errors.csv", "heads.json", "explanations.parquet", "report.html", "README.md",
}  # fmt: skip


def scores(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return result


def analysis(run: Path) -> dict[str, Any]:
    """Return the content of `heads.json` without the measured seconds, which differ between runs."""
    result: dict[str, Any] = json.loads((run / "heads.json").read_text())
    for method in result["methods"]:
        assert method.pop("seconds") > 0
    return result


def first_method(run: Path) -> dict[str, Any]:
    """Return the results of the method that ranks the heads."""
    result: dict[str, Any] = analysis(run)["methods"][0]
    return result


@pytest.fixture(scope="session")
def scratch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the article's small classifier, launched by Accelerate from a folder outside the project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = start(["accelerate", "launch", ROOT / "finetune" / "run.py", SCRATCH], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 4 validation rows are also training rows" in done.stdout
    return folder / "runs" / "toy_from_scratch"


def test_the_small_classifier_learns_its_four_rows(scratch_run: Path) -> None:
    assert {path.name for path in scratch_run.iterdir()} == COMPLETE
    validation = scores(scratch_run)["validation"]
    assert validation["metrics"]["accuracy"]["value"] == 1.0
    assert validation["confusion"] == [[2, 0], [0, 2]]
    assert validation["metrics"]["accuracy"]["low"] is None
    heads = first_method(scratch_run)
    assert [len(row) for row in heads["values"]] == [2]
    assert heads["values"][0][0] != heads["values"][0][1]
    assert min(heads["standard_errors"][0]) > 0
    rows = pq.read_table(scratch_run / "predictions.parquet").to_pylist()
    assert [row["predicted"] for row in rows] == [row["label"] for row in rows] == ["1", "0", "1", "0"]
    history = [json.loads(line) for line in (scratch_run / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 41))
    assert len([entry for entry in history if "eval_loss" in entry]) == 10


def test_the_small_classifier_has_the_configured_sizes(scratch_run: Path) -> None:
    toy_classifier.register()
    model = AutoModelForSequenceClassification.from_pretrained(scratch_run / "model")
    assert isinstance(model, toy_classifier.MultiHeadClassifier)
    config = model.config
    assert (config.hidden_size, config.num_attention_heads, config.head_dim, config.intermediate_size) == (
        16,
        2,
        16,
        24,
    )
    assert config.vocab_size <= 100
    assert config.id2label == {0: "0", 1: "1"}


def test_evaluating_a_moved_run_gives_the_same_scores(
    scratch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(scratch_run, run)
    for name in ("predictions.parquet", "heads.json", "report.html"):
        (run / name).unlink()
    assert main(["evaluate", str(run)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "These scores are identical, to the last digit, to the previous ones in the folder." in printed
    assert scores(run) == scores(scratch_run)
    assert analysis(run) == analysis(scratch_run)
    assert {path.name for path in run.iterdir()} == COMPLETE
    assert str(run / "report.html") in printed


def test_the_resolved_recipe_repeats_the_run(scratch_run: Path, tmp_path: Path) -> None:
    assert main(["train", str(scratch_run / "recipe.yaml"), f"output_dir={tmp_path / 'again'}"]) == 0
    assert scores(tmp_path / "again") == scores(scratch_run)
    assert analysis(tmp_path / "again") == analysis(scratch_run)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pretrained MiniLM with LoRA on the four rows, in bf16."""
    folder = tmp_path_factory.mktemp("toy")
    done = forked(["-m", "finetune", "train", RECIPES / "toy.yaml", "training.mixed_precision=bf16"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "toy"


def test_toy_reaches_four_of_four_and_warns_about_training_rows(toy_run: Path) -> None:
    assert {path.name for path in toy_run.iterdir()} == COMPLETE
    assert scores(toy_run)["validation"]["confusion"] == [[2, 0], [0, 2]]
    for name in ("report.html", "README.md"):
        assert "All 4 validation rows are also training rows" in (toy_run / name).read_text()
    heads = first_method(toy_run)
    assert [len(row) for row in heads["values"]] == [12] * 6
    training = json.loads((toy_run / "training.json").read_text())
    # LoRA of rank 8 on four projections of width 384 in six layers, and the new head of two labels.
    assert training["trainable_parameters"] == 6 * 4 * 8 * (384 + 384) + 384 * 2 + 2


def test_merged_weights_load_in_transformers(toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = ["merge", str(toy_run), "--output", str(tmp_path / "plain")]
    assert main(merge) == 0
    assert f"Plain weights saved in {tmp_path / 'plain'}" in capsys.readouterr().out.replace("\n", "")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    rows = pq.read_table(toy_run / "predictions.parquet").to_pylist()
    probabilities = model(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits.softmax(
        -1
    )
    expected = torch.tensor([row["probabilities"] for row in rows])
    torch.testing.assert_close(probabilities, expected, atol=2e-2, rtol=0)  # the run scored in bf16: measured 3e-3
    assert main(merge) == 2
    assert "already exists and is not empty" in capsys.readouterr().err


def test_lora_on_a_model_trained_here(scratch_run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sentence,label\nThe cat is clean,0\nThe dog sat on the mat,1\nThe mat is clean,0\nThe cat sat,1\n")
    run = tmp_path / "run"
    changes = [f"data.train_file={rows}", f"data.validation_file={rows}", f"output_dir={run}"]
    changes += [f"model.model_name_or_path={scratch_run / 'model'}", "training.num_threads=1"]
    assert main(["train", str(RECIPES / "toy.yaml"), *changes]) == 0
    assert [len(row) for row in first_method(run)["values"]] == [2]
    assert (run / "model" / "adapter_config.json").is_file()


def test_a_dry_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "toy"
    changes = ["logging.report_to=tensorboard", "seed=4", f"output_dir={run}"]
    assert main(["train", str(SCRATCH), "--dry-run", *changes]) == 0
    printed = capsys.readouterr().out
    assert "Dry run passed" in printed
    assert "0 2, 1 2" in printed  # rows by label
    assert not run.parent.exists()


def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    texts = ["the cat sat", "a dog chased the cat on the mat", "clean floor", "the mat is on the floor", "dog"]
    rows = [{"sentence": texts[n % 5] + f" {n}", "label": "yes" if n % 3 else "no"} for n in range(13)]
    reversed_labels = [{**row, "label": "no" if row["label"] == "yes" else "yes"} for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "turned.jsonl").write_text("\n".join(map(json.dumps, reversed_labels)))
    # Steps of 8 and 5 rows; the last batch has one row, so that one of two processes has none. Accuracy does not change
    # in the first epochs, so that patience 1 ends the run early. The loss on the reversed labels increases, so that the
    # first evaluation is the best.
    common = [
        f"data.train_file={tmp_path / 'rows.jsonl'}", f"data.validation_file={tmp_path / 'turned.jsonl'}", "seed=3",
        "task.label_names=[no, yes]", "evaluation.per_device_eval_batch_size=4", "training.num_train_epochs=9",
        "training.gradient_accumulation_steps=2", "training.learning_rate=0.0001", "training.max_grad_norm=0.01",
        "training.lr_scheduler_type=linear", "evaluation.metric_for_best_model=accuracy",
        "evaluation.early_stopping_patience=1", "training.num_threads=1",
    ]  # fmt: skip
    run = ROOT / "finetune" / "run.py"
    single = [f"output_dir={tmp_path / 'one'}", "training.per_device_train_batch_size=4"]
    assert main(["train", str(SCRATCH), *common, *single]) == 0
    double = ["output_dir=two", "training.per_device_train_batch_size=2", "logging.report_to=tensorboard"]
    done = forked([run, SCRATCH, *common, *double], tmp_path, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    num_processes = [
        json.loads((tmp_path / name / "environment.json").read_text())["processes"] for name in ("one", "two")
    ]
    assert num_processes == [1, 2]  # otherwise the comparisons below would be of one process with itself
    assert done.stdout.startswith("2 processes, cpu\n")
    assert len(list((tmp_path / "two").glob("trackers/**/events*"))) == 1  # only the main process has a tracker
    first, second = (scores(tmp_path / name)["validation"] for name in ("one", "two"))
    assert first["rows"] == second["rows"] == 13
    assert second["confusion"] == first["confusion"]
    # Gradients are summed in another order, in float32; there is no dropout. Measured: identical losses, weights within
    # 2e-9.
    assert second["loss"] == pytest.approx(first["loss"], rel=FLOAT32)
    histories = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(histories[0]) == len(histories[1]) == 4 + 2
    for expected, actual in zip(*histories, strict=True):
        expected.pop("samples_per_second", 0), actual.pop("samples_per_second", 0)
        assert actual == pytest.approx(expected, rel=FLOAT32)
    training_results = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")]
    for training in training_results:
        assert (training["steps"], training["best_step"], training["stopped"]) == (4, 2, "no better evaluation in 1")
    for weights in ("model/model", "checkpoints/step-000002/weights", "checkpoints/step-000004/best"):
        expected, actual = (load_file(tmp_path / name / f"{weights}.safetensors") for name in ("one", "two"))
        assert expected.keys() == actual.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, atol=TRAINED, rtol=0)
    tables = [pq.read_table(tmp_path / name / "predictions.parquet").to_pylist() for name in ("one", "two")]
    assert [row["row"] for row in tables[1]] == list(range(1, 14))
    assert [row["text"] for row in tables[1]] == [row["sentence"] for row in rows]
    for expected, actual in zip(*tables, strict=True):
        assert actual.pop("probabilities") == pytest.approx(expected.pop("probabilities"), abs=FLOAT32)
        assert actual.pop("loss") == pytest.approx(expected.pop("loss"), rel=FLOAT32)
        assert actual == expected
    heads = [first_method(tmp_path / name) for name in ("one", "two")]
    assert heads[1]["values"][0] == pytest.approx(heads[0]["values"][0], rel=1e-3)
    assert second["interval_note"] == ""


def test_a_killed_run_is_resumed(scratch_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(scratch_run, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step-000040")  # as if killed before the end
    (tmp_path / "killed" / "scores.json").unlink()
    resume = ["output_dir=killed", "checkpoint.resume_from_checkpoint=auto"]
    done = forked(["-m", "finetune", "train", SCRATCH, *resume], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 36 of 40" in done.stdout
    assert (tmp_path / "killed" / "scores.json").read_text() == (scratch_run / "scores.json").read_text()
    lines = [(run / "history.jsonl").read_text().splitlines() for run in (scratch_run, tmp_path / "killed")]
    assert len(lines[0]) == len(lines[1]) == 50
    # As if killed after its last checkpoint, before the oldest was deleted.
    checkpoints = tmp_path / "killed" / "checkpoints"
    shutil.copytree(checkpoints / "step-000036", checkpoints / "step-000032")
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(SCRATCH), *resume, "training.use_cpu=true", "head_importance=null"]) == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000036", "step-000040"]


def test_an_input_of_the_run_is_not_overwritten(
    scratch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scratch_run, run)
    source = f"model.model_name_or_path={run / 'model'}"
    assert main(["train", str(RECIPES / "toy.yaml"), source, f"output_dir={run}"]) == 2
    assert "model.model_name_or_path is inside output_dir" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == COMPLETE


def test_a_run_resumes_only_with_the_same_batch_size(
    scratch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scratch_run, run)
    before = (run / "recipe.yaml").read_text()
    overrides = [
        "checkpoint.resume_from_checkpoint=auto",
        f"output_dir={run}",
        "training.per_device_train_batch_size=2",
    ]
    assert main(["train", str(SCRATCH), "training.use_cpu=true", *overrides]) == 2
    assert "rows of a batch over all processes: was 1, now 2" in capsys.readouterr().err
    assert (run / "recipe.yaml").read_text() == before
    assert "resume_from_checkpoint: null" in before


def test_an_earlier_run_is_replaced_only_with_overwrite_output_dir(
    scratch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scratch_run, run)
    (run / "notes.txt").write_text("mine")
    train = ["train", str(SCRATCH), f"output_dir={run}", "training.num_threads=1"]
    assert main([*train, "overwrite_output_dir=false"]) == 2
    assert "contains an earlier run" in capsys.readouterr().err
    assert main([*train, "seed=9"]) == 0
    assert {path.name for path in run.iterdir()} == {*COMPLETE, "notes.txt"}
