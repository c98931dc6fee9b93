"""The command `export`: what it writes, what it refuses, and that nothing else is needed to serve the result."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.cli import main
from finetune.errors import DataError
from finetune.models.onnx_classifier import load_onnx
from finetune.models.outputs import OutputRules
from finetune.pipeline import export as export_module
from finetune.pipeline.export import export
from finetune.pipeline.export_folder import Export, _serve_script
from finetune.pipeline.export_rows import read_rows
from finetune.pipeline.load_classifier import load_classifier
from finetune.runs.run_folder import RunFolder
from tests.support import ROOT
from tests.support.finished_runs import SCRATCH, contents, finished, recipe
from tests.support.helpers import assert_equal_up_to_rounding

FILES = {"README.md", "config.json", "conformal.json", "model.onnx", "serve.py", "tokenizer.json"}
TEXTS = ["the cat sat on the mat", "a dog", "the dog chased the cat on the floor now"]
# Runs an exported folder's example, then the command `predict`, in a process without the libraries that train.
WITHOUT_TRAINING_LIBRARIES = """
import runpy, sys
BLOCKED = {"torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "huggingface_hub", "safetensors"}
BLOCKED |= {"jinja2", "pandas", "psutil", "pydantic", "scipy", "sklearn", "yaml"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
folder, rows, output, *texts = sys.argv[1:]
try:
    import torch
except ImportError:
    sys.argv = [folder + "/serve.py", *texts]
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert not any(name.partition(".")[0] == "finetune" for name in sys.modules)
    from finetune.cli import main
    code = main(["predict", folder, rows, "--output", output, "--probabilities"])
    assert not BLOCKED & sys.modules.keys()
    sys.exit(code)
"""


def test_every_kind_of_model_is_exported_and_served(
    run: Path, lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = Path(shutil.copytree(lora_run, tmp_path / "adapted"))
    assert main(["prune", str(run), "--share", "0.4"]) == 0
    before = contents(run)
    for source, target in ((run, run / "onnx"), (run / "pruned", run / "pruned" / "onnx"), (adapted, adapted / "onnx")):
        capsys.readouterr()
        assert main(["export", str(source)]) == 0
        printed = capsys.readouterr().out
        assert f"Exported to {target}\n" in printed
        assert "Largest difference of a logit between the model and PyTorch: " in printed
        has_scores = source != run / "pruned"  # those of the unpruned model would promise too much
        assert {path.name for path in target.iterdir()} == FILES - (set() if has_scores else {"conformal.json"})
        classifier, exported = load_classifier(source), load_onnx(target)
        assert_equal_up_to_rounding(exported.logits([TEXTS], 2), classifier.logits([TEXTS], 2))
        assert (exported.rules, exported.max_length) == (classifier.rules, classifier.max_length)
        assert exported.text_columns == ("sentence",)
    assert {name: data for name, data in contents(run).items() if "onnx" not in name} == before
    # The example and the command print the same predictions without the libraries that train.
    rows, output = tmp_path / "rows.csv", tmp_path / "predicted.csv"
    rows.write_text("\n".join(["sentence", *TEXTS]) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING_LIBRARIES, str(run / "onnx"), str(rows), str(output), *TEXTS],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    predictions = load_classifier(run).predict(TEXTS)
    lines = [line.split() for line in done.stdout.splitlines()][: len(TEXTS)]
    assert [label for label, _ in lines] == [prediction.label for prediction in predictions]
    probabilities = [max(prediction.probabilities.values()) for prediction in predictions]
    np.testing.assert_allclose([float(value) for _, value in lines], probabilities, atol=2e-4)
    with output.open() as file:
        written = list(csv.DictReader(file))
    assert [row["sentence"] for row in written] == TEXTS
    assert [row["predicted"] for row in written] == [prediction.label for prediction in predictions]
    np.testing.assert_allclose([float(row["probability"]) for row in written], probabilities, atol=1e-5)
    assert len((run / "onnx" / "serve.py").read_text().splitlines()) <= 20


def test_int8_is_compared_with_float32_on_the_evaluation_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--quantize", "int8"]) == 0
    printed = capsys.readouterr().out
    config = json.loads((run / "onnx-int8" / "config.json").read_text())
    assert config["export"]["precision"] == "int8"
    comparison = config["export"]["int8"]
    assert (comparison["split"], comparison["rows"]) == ("test", 40)
    scores = json.loads((run / "scores.json").read_text())["test"]["metrics"]["accuracy"]["value"]
    assert comparison["metrics"]["accuracy"]["float32"] == pytest.approx(scores)
    assert "int8 compared with float32 on 40 test rows: the same prediction for " in printed
    readme = (run / "onnx-int8" / "README.md").read_text()
    lines = [line for line in printed.splitlines() if line.startswith(("accuracy: float32 ", "int8 compared"))]
    assert len(lines) == 2
    assert all(line in readme for line in lines)
    assert "7 of 8 bits" in readme
    # Logits that are divided by a small temperature do not overflow.
    (run / "onnx-int8" / "config.json").write_text(json.dumps(config | {"temperature": 1e-3}))
    labels = [prediction.label for prediction in load_classifier(run).predict(TEXTS)]
    assert served(run / "onnx-int8") == [f"{label} 1.0" for label in labels]
    script = [sys.executable, str(run / "onnx-int8" / "serve.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Classify texts: python serve.py TEXT ...\n")


def served(folder: Path) -> list[str]:
    """Return the lines that the example of an exported folder prints for TEXTS."""
    done = subprocess.run(
        [sys.executable, str(folder / "serve.py"), *TEXTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_problem_types(problem_type: str, tmp_path: Path) -> None:
    multi = problem_type == "multi_label_classification"
    names = ["animal", "cat"] if multi else None
    task = {"problem_type": problem_type, "label_names": names}
    content = recipe(SCRATCH, task=task, evaluation={"metrics": None}, training={"num_train_epochs": 1})
    for key in ("train_rows", "validation_rows", "test_rows"):
        for row in content["data"][key]:
            animals = [animal for animal in ("cat", "dog") if animal in str(row["sentence"]).split()]
            sets = ["animal"] * bool(animals) + ["cat"] * ("cat" in animals)
            row["label"] = sets if multi else float(len(animals))
    content["head_importance"] = None
    run = finished(tmp_path, content)
    folder, result = export(run, int8=True)
    assert result.int8 is not None
    assert result.int8.rows == 40
    assert (result.int8.same_predictions is None) == (not multi)
    classifier, exported = load_classifier(run), load_onnx(folder)
    assert exported.rules == classifier.rules
    difference = np.abs(exported.logits([TEXTS], 2) - classifier.logits([TEXTS], 2)).max()
    assert 0 < difference < 0.2
    for line, prediction in zip(served(folder), exported.rules.predictions(exported.logits([TEXTS], 3)), strict=True):
        if multi:
            assert [name for name, _ in eval(line)] == list(prediction.label)  # type: ignore[arg-type]
        else:
            assert float(line) == pytest.approx(prediction.label, abs=1e-3)
    if multi:  # probabilities of exactly 0 and 1, which are not above thresholds of 0 and 1
        config = json.loads((folder / "config.json").read_text())
        config |= {"temperature": 1e-6, "thresholds": [0, 1]}
        (folder / "config.json").write_text(json.dumps(config))
        exported = load_onnx(folder)
        predictions = exported.rules.predictions(exported.logits([TEXTS], 3))
        assert {value for prediction in predictions for value in prediction.probabilities.values()} <= {0, 1}
        assert [[name for name, _ in eval(line)] for line in served(folder)] == [
            list(prediction.label)  # type: ignore[arg-type]
            for prediction in predictions
        ]


@pytest.mark.parametrize("thresholds", [None, (None, 0.2, None), (0.3, 0.4, 0.35)])
def test_the_script_that_serves_applies_the_threshold_of_a_rare_label(
    thresholds: tuple[float | None, ...] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = OutputRules(("a", "b", "c"), "single_label_classification", thresholds, temperature=1.5)
    logits = np.random.default_rng(0).normal(size=(60, 3))
    script = _serve_script(rules, pairs=False)
    assert len(script.splitlines()) <= 20
    config = {"label_names": rules.label_names, "thresholds": thresholds, "temperature": rules.temperature}
    exec(script.partition("for name, rows in inputs.items()})\n")[2], {"np": np, "config": config, "logits": logits})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    predictions = rules.predictions(logits)
    assert [label for label, _ in printed] == [prediction.label for prediction in predictions]
    assert [float(value) for _, value in printed] == [
        pytest.approx(prediction.probabilities[str(prediction.label)], abs=1e-4) for prediction in predictions
    ]
    assert len({label for label, _ in printed}) >= 2


def test_a_folder_that_exists_is_refused_and_nothing_is_left_of_a_failure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    before = contents(run)
    assert main(["export", str(run), "--output", str(taken)]) == 2
    assert f"{taken} already exists and is not empty; name another folder with --output" in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    monkeypatch.setattr(export_module, "_TOLERANCE", 0)
    assert main(["export", str(run)]) == 2
    error = capsys.readouterr().err
    assert "the logits of the exported model differ from PyTorch's by " in error
    assert "nothing was written" in error
    monkeypatch.setattr(export_module, "write_onnx", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run)
    assert contents(run) == before
    assert not list(run.glob(".*"))
    assert not list(run.glob("*onnx*"))


def test_wrong_folders_and_options_are_one_message(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(run / "model", tmp_path / "moved" / "model")
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "there is no such folder; name a run folder"),
        ([str(tmp_path / "empty")], "it contains no trained model; name a run folder"),
        ([str(tmp_path / "moved"), "seed=3"], "has no recipe that 'seed=3' could change"),
        ([str(run), "seed=3"], "seed cannot be changed"),
        ([str(run), "--output", "\0"], "contains a NUL character"),
    ):
        assert main(["export", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("error: ") == 1
        assert message in printed.err
    # A model folder without a run is exported, but there are no rows to compare int8 on.
    _, result = export(tmp_path / "moved", int8=True)
    assert result.int8 is None
    assert "The run has no evaluation rows, so the accuracy of int8 was not measured." in list(result.lines())
    (run / "predictions.parquet").write_bytes(b"damaged")
    assert main(["export", str(run)]) == 2
    assert str(run / "predictions.parquet") in capsys.readouterr().err


def test_labels_of_another_model_are_damage(run: Path) -> None:
    rules = load_classifier(run).rules
    assert read_rows(RunFolder(run), rules) is not None
    (run / "predictions.parquet").rename(run / "other.parquet")
    assert read_rows(RunFolder(run), rules) is None
    (run / "other.parquet").rename(run / "predictions.parquet")
    renamed = type(rules)(("a", "b"), rules.problem_type)
    with pytest.raises(DataError, match="its labels are not those of the model"):
        read_rows(RunFolder(run), renamed)


def test_the_result_is_also_data(run: Path) -> None:
    folder, result = export(run)
    assert isinstance(result, Export)
    assert result.size == (folder / "model.onnx").stat().st_size
    assert result.parity.difference <= result.parity.tolerance
    assert result.parity.shortest < result.parity.longest == 16
    assert result.parity.batch_sizes == (1, 7, 32)
