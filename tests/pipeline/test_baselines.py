"""The baselines of a run, from training to evaluation and the report: finetune/pipeline/baselines.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from finetune.cli import main
from finetune.pipeline import baselines as baselines_module
from finetune.runs.run_files import read_baselines
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, finished, recipe, rows

ALL = ["majority", "tfidf", "frozen_encoder"]
OFF = {"head_importance": None}


@pytest.fixture(scope="module")
def content(tiny_bert: Path) -> dict[str, Any]:
    training = {"num_train_epochs": 1, "learning_rate": 1e-4}
    result = recipe({"model_name_or_path": str(tiny_bert)}, training=training, evaluation={"baselines": ALL})
    return result | OFF


@pytest.fixture(scope="module")
def compared(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all baselines; copy it before changing it."""
    return finished(tmp_path_factory.mktemp("compared"), content)


@pytest.fixture
def run(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "run"))


def test_a_run_is_compared_with_its_baselines(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = read_baselines(RunFolder(compared))
    assert comparison is not None
    assert (comparison.metric, list(comparison.fitted), comparison.skipped) == ("accuracy", ALL, {})
    assert [info.training_rows for info in comparison.fitted.values()] == [48] * 3
    assert comparison.fitted["tfidf"].description == "TF-IDF + logistic regression"
    assert list(comparison.splits) == ["validation", "test"]
    for split, result in comparison.splits.items():
        scores = json.loads((compared / "scores.json").read_text())[split]
        assert result.classifier == {"accuracy": scores["metrics"]["accuracy"]["value"]}
        assert result.baselines["majority"].metrics == {"accuracy": 0.5}
        table = pq.read_table(compared / "predictions.parquet").to_pylist()
        for name, baseline in result.baselines.items():
            right = [row[f"baseline_{name}"] == row["label"] for row in table if row["split"] == split]
            assert baseline.metrics["accuracy"] == sum(right) / 40
    assert comparison.splits["test"].baselines["tfidf"].metrics["accuracy"] > 0.7  # the label depends on two words
    html, card = (compared / "report.html").read_text(), (compared / "README.md").read_text()
    assert '<td class="text">TF-IDF + logistic regression</td><td>0.' in html
    assert re.search(r"\| TF-IDF \+ logistic regression \| 0\.\d{4} \([+-]0\.\d{4} \[", card)


def test_baselines_do_not_change_the_training(content: dict[str, Any], compared: Path, tmp_path: Path) -> None:
    without = finished(tmp_path, content, "evaluation.baselines=null")
    assert not (without / "baselines.json").exists()
    assert "baseline_majority" not in pq.read_schema(without / "predictions.parquet").names
    first, second = (load_file(path / "model" / "model.safetensors") for path in (compared, without))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_the_frozen_encoder_is_that_of_the_checkpoint(content: dict[str, Any], compared: Path, tmp_path: Path) -> None:
    # Its top layer is initialized at random before training.
    run = finished(tmp_path, content, "training.reinit_layers=1", "evaluation.baselines=[frozen_encoder]")
    columns = [pq.read_table(path / "predictions.parquet")["baseline_frozen_encoder"] for path in (compared, run)]
    assert columns[0].equals(columns[1])


def test_evaluate_shows_them_without_fitting_again(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [(run / name).read_bytes() for name in ("baselines.json", "predictions.parquet")]
    monkeypatch.setattr(baselines_module, "_fit", lambda *arguments: pytest.fail("they were fitted again"))
    assert main(["evaluate", str(run)]) == 0
    assert "TF-IDF + logistic regression" in capsys.readouterr().out
    assert [(run / name).read_bytes() for name in ("baselines.json", "predictions.parquet")] == before


def test_evaluate_fits_them_again_for_other_rows(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = read_baselines(RunFolder(run))
    other = f"data.test_rows={json.dumps(rows(20, 9))}"
    assert main(["evaluate", str(run), other]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Baselines fitted and scored in \d+\.\d s: majority, tfidf, frozen_encoder\.", printed)
    comparison = read_baselines(RunFolder(run))
    assert before is not None
    assert comparison is not None
    assert [result.rows for result in comparison.splits.values()] == [40, 20]
    assert comparison.splits["validation"] == before.splits["validation"]  # also that on the encoder before training


def test_a_run_without_the_file_is_read_and_evaluated(run: Path) -> None:
    assert main(["evaluate", str(run), "evaluation.baselines=null"]) == 0
    assert not (run / "baselines.json").exists()
    assert main(["report", str(run)]) == 0
    assert "Baselines" not in (run / "report.html").read_text()
    assert "## Baselines" not in (run / "README.md").read_text()
    assert main(["evaluate", str(run), "evaluation.baselines=[majority]"]) == 0
    assert "most frequent label" in (run / "report.html").read_text()


def test_a_missing_checkpoint_is_reported(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (run / "baselines.json").unlink()
    assert main(["evaluate", str(run), "model.model_name_or_path=me/gone"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "The baseline frozen_encoder was skipped: " in printed
    assert "gone" in printed
    comparison = read_baselines(RunFolder(run))
    assert comparison is not None
    assert (list(comparison.fitted), list(comparison.skipped)) == (["majority", "tfidf"], ["frozen_encoder"])
    assert "Without the baseline frozen encoder: " in (run / "report.html").read_text()


def test_a_model_from_scratch_has_no_frozen_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines_module, "MAX_TFIDF_ROWS", 20)
    training = {"num_train_epochs": 1, "learning_rate": 1e-6}
    run = finished(tmp_path, recipe(SCRATCH, training=training, evaluation={"baselines": ALL}) | OFF)
    printed = capsys.readouterr().out
    assert "skipped" not in printed
    comparison = read_baselines(RunFolder(run))
    assert comparison is not None
    assert comparison.skipped == {"frozen_encoder": "the encoder has no pretrained weights"}
    assert comparison.fitted["tfidf"].training_rows == 20
    warnings = comparison.warnings()
    assert warnings
    assert len(warnings) + printed.count("for every row: the model may have learned nothing.") == 2  # one per split
    for warning in warnings:
        assert "the score of a baseline (TF-IDF + logistic regression on 20 of 48 rows)" in warning
        assert printed.count(warning) == 1
        assert warning in (run / "report.html").read_text()
        assert f"> {warning}" in (run / "README.md").read_text()
    assert main(["evaluate", str(run), "evaluation.baselines=[frozen_encoder]"]) == 0
    message = "The baseline frozen_encoder was skipped: the encoder has no pretrained weights."
    assert message in capsys.readouterr().out


def test_a_baseline_is_listed_once(write_recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(
        "model: {model_name_or_path: a/b}\ndata: {dataset_name: c}\nevaluation: {baselines: [tfidf, tfidf]}\n"
    )
    assert main(["check", str(path)]) == 2
    assert "baselines is tfidf, tfidf; list each baseline once" in capsys.readouterr().err
