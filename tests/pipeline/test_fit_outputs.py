from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from finetune.runs.json_files import read_json
from finetune.runs.outputs import FittedOutputs
from finetune.runs.run_files import read_scores
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, finished, read_back, recipe, rows


def test_the_temperature_of_the_recipe_is_saved_with_the_model_and_changes_no_decision(tmp_path: Path) -> None:
    temperature = 2.0
    content = recipe(SCRATCH, outputs={"temperature": temperature}) | {"head_importance": None}
    folder = RunFolder(finished(tmp_path, content))
    assert json.loads((folder.model / "classifier.json").read_text())["temperature"] == temperature
    table = pq.read_table(folder.predictions)
    run = read_back(folder.path)
    assert run.inputs.classifier.rules.temperature == temperature
    texts = table["text"].to_pylist()
    logits = run.inputs.classifier.logits([texts], 32).astype(np.float64)
    probabilities = np.array(table["probabilities"].to_pylist())
    expected = (logits[:, 1] - logits[:, 0]) / temperature
    np.testing.assert_allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), expected, atol=1e-4)
    assert table["predicted"].to_pylist() == [str(index) for index in logits.argmax(1)]
    assert np.ptp(expected) > 1  # the two labels are not equally probable everywhere


def test_the_temperature_is_fitted_to_the_validation_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A third of the validation labels are wrong, so the probabilities of the trained model are too extreme."""
    rng = np.random.default_rng(0)
    noisy = [
        row | {"label": row["label"] if rng.random() < 0.67 else 1 - int(str(row["label"]))} for row in rows(150, 2)
    ]
    content = recipe(SCRATCH, data={"validation_rows": noisy}) | {"head_importance": None}
    folder = RunFolder(finished(tmp_path, content))
    record = read_json(folder.fitted_outputs, FittedOutputs)
    fit = record.temperature_fit
    assert fit is not None
    assert fit.applied
    assert (record.rows, record.conformal_rows, record.temperature) == (150, 150, fit.value)
    assert record.temperature > 1.2
    assert fit.text() in " ".join(capsys.readouterr().out.split())
    run = read_back(folder.path)
    classifier = run.inputs.classifier
    assert classifier.temperature == record.temperature
    table = pq.read_table(folder.predictions)
    probabilities = np.array(table["probabilities"].to_pylist())
    logits = classifier.logits([table["text"].to_pylist()], 32).astype(np.float64)
    expected = (logits[:, 1] - logits[:, 0]) / record.temperature
    np.testing.assert_allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), expected, atol=1e-4)
    assert table["predicted"].to_pylist() == [str(index) for index in logits.argmax(1)]
    is_validation = np.array([split == "validation" for split in table["split"].to_pylist()])
    labels = np.array([int(label) for label in table["label"].to_pylist()])
    for label in range(2):  # the scores for prediction sets are those of the calibrated probabilities
        errors = 1 - probabilities[is_validation & (labels == label), label]
        assert classifier.conformal is not None
        np.testing.assert_allclose(classifier.conformal.errors[label], np.sort(errors), atol=2e-5)
    confidence = {name: score.confidence for name, score in read_scores(folder).items()}
    assert all(result is not None and len(result.sets) == 3 for result in confidence.values())
    assert {name: bool(result and result.note) for name, result in confidence.items()} == {
        "validation": True,
        "test": False,
    }
