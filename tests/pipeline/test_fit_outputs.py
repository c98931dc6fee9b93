from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, finished, read_back, recipe


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
