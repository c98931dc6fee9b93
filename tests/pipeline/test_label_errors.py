"""Likely label errors of a run, from training to evaluation and the report: finetune/pipeline/label_errors.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from finetune.cli import main
from finetune.pipeline import label_errors, linear_probe
from finetune.runs.label_errors import read_label_errors
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import finished, recipe, rows

OFF = {"head_importance": None}
ROWS = 96
PLANTED = range(6, ROWS + 1, 12)  # numbers of training rows


def noisy_rows() -> list[dict[str, object]]:
    """Return training rows that begin with a word of their label, and of which some then get the other label."""
    result = rows(ROWS, 1)
    for number, row in enumerate(result, 1):
        row["sentence"] = f"{'good one ' * 3 if row['label'] else 'bad one ' * 3}{row['sentence']}"
        if number in PLANTED:
            row["label"] = 1 - int(str(row["label"]))
    return result


@pytest.fixture(scope="module")
def content(tiny_bert: Path) -> dict[str, Any]:
    content = recipe(
        {"model_name_or_path": str(tiny_bert)},
        data={"train_rows": noisy_rows(), "validation_rows": rows(60, 2)},
        training={"num_train_epochs": 1, "learning_rate": 1e-4},
        evaluation={"baselines": ["frozen_encoder"], "label_errors": True},
    )
    return content | OFF


@pytest.fixture(scope="module")
def checked(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with wrong labels; copy it before changing it."""
    return finished(tmp_path_factory.mktemp("checked"), content)


@pytest.fixture
def run(checked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checked, tmp_path / "run"))


def test_planted_errors_are_listed_first(checked: Path) -> None:
    errors = read_label_errors(RunFolder(checked))
    assert errors is not None
    train = [error for error in errors if error.split == "train"]
    planted = {error.row for error in train} & set(PLANTED)
    assert len(planted) >= max(2, len(train) / 2)
    first = next(error for error in train if error.row in PLANTED)
    row = noisy_rows()[first.row - 1]
    assert (first.texts, first.label) == ((row["sentence"],), str(row["label"]))
    assert first.suggested_label == str(1 - int(first.label))
    table = pq.read_table(checked / "predictions.parquet").to_pylist()
    predicted = {(line["split"], line["row"]): line for line in table}
    assert {error.split for error in errors} == {"train", "validation"}  # there are only 40 test rows
    for error in errors[len(train) :]:
        line = predicted[error.split, error.row]
        assert (error.label, error.suggested_label) == (line["label"], line["predicted"])
        assert error.label_probability == pytest.approx(line["probabilities"][int(line["label"])], abs=1e-6)
    html = (checked / "report.html").read_text()
    assert f"train: {len(train)} of {ROWS} rows" in html
    assert str(row["sentence"]) in html.partition("<h2>Likely label errors</h2>")[2]


def test_the_check_does_not_change_the_training_and_can_be_turned_off(
    content: dict[str, Any], checked: Path, tmp_path: Path
) -> None:
    without = finished(tmp_path, content, "evaluation.label_errors=false")
    assert not (without / "label_errors.csv").exists()
    assert 'id="label-errors"' not in (without / "report.html").read_text()
    first, second = (load_file(path / "model" / "model.safetensors") for path in (checked, without))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_states_are_computed_once(
    content: dict[str, Any], checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    compute = linear_probe.pooled_states

    def counting(classifier: Any, split: Any, **options: Any) -> np.ndarray:
        encoded.append(len(split))
        return compute(classifier, split, **options)

    monkeypatch.setattr(linear_probe, "pooled_states", counting)
    monkeypatch.setattr(label_errors, "pooled_states", counting)
    monkeypatch.setattr(linear_probe, "MAX_PROBE_ROWS", 40)
    finished(tmp_path, content)
    assert encoded == [40, ROWS - 40]  # those of the baseline, and those of the other training rows


def test_evaluate_keeps_the_training_rows_if_they_have_not_changed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "label_errors.csv").read_bytes()
    monkeypatch.setattr(label_errors, "_check_training_rows", lambda *args, **options: pytest.fail("checked again"))
    assert main(["evaluate", str(run)]) == 0
    assert (run / "label_errors.csv").read_bytes() == before


def test_evaluate_checks_a_run_without_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "label_errors.csv").read_bytes()
    (run / "label_errors.csv").unlink()
    assert main(["report", str(run)]) == 0
    assert 'id="label-errors"' not in (run / "report.html").read_text()
    assert main(["evaluate", str(run)]) == 0
    assert re.search(
        rf"Labels of {ROWS} training rows checked in \d+\.\d s: \d+ may be wrong\.", capsys.readouterr().out
    )
    assert (run / "label_errors.csv").read_bytes() == before
    assert main(["evaluate", str(run), "evaluation.label_errors=false"]) == 0
    assert not (run / "label_errors.csv").exists()


def test_corrected_rows_are_checked_again(content: dict[str, Any], run: Path) -> None:
    corrected = [{**row, "label": 1 - int(str(row["label"]))} if number in PLANTED else row
                 for number, row in enumerate(noisy_rows(), 1)]  # fmt: skip
    assert main(["evaluate", str(run), f"data.train_rows={json.dumps(corrected)}"]) == 0
    errors = read_label_errors(RunFolder(run))
    assert errors is not None
    assert not {error.row for error in errors if error.split == "train"} & set(PLANTED)


def test_a_large_split_is_sampled(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(label_errors, "MAX_CHECKED_ROWS", 60)
    monkeypatch.setattr(linear_probe, "MAX_PROBE_ROWS", 20)
    finished(tmp_path, content)
    assert "Labels of 60 training rows checked" in capsys.readouterr().out
