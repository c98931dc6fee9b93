"""The file of predictions: finetune/evaluation/predictions_file.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator

from finetune.evaluation.prediction import predict
from finetune.evaluation.predictions_file import predictions_table, write_predictions
from tests.conftest import SENTENCES
from tests.support.helpers import encoded, tiny_classifier
from tests.support.predictions import predictions_of


def test_every_split_is_in_the_file(tiny_bert: Path, accelerator: Accelerator, tmp_path: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)
    predictions = predict(classifier, split, batch_size=4, accelerator=accelerator)
    path = tmp_path / "predictions.parquet"
    tables = [predictions_table(name, split, predictions, ["no", "yes"]) for name in ("validation", "test")]
    write_predictions(path, tables)
    rows = pq.read_table(path).to_pylist()
    assert [(row["split"], row["row"]) for row in rows[5:7]] == [("validation", 6), ("test", 1)]
    assert [row["text"] for row in rows[:6]] == SENTENCES
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1.0)
        assert row["predicted"] == ["no", "yes"][int(np.argmax(row["probabilities"]))]
        assert row["loss"] == pytest.approx(
            -np.log(row["probabilities"][["no", "yes"].index(row["label"])]), rel=1e-4, abs=1e-6
        )
    assert not list(tmp_path.glob(".*"))


def test_label_sets_are_lists_of_names(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    sets = predictions_of([[2.0, -1.0]] * 6, [[1, 1]] * 6, "multi_label_classification")
    rows = predictions_table("test", encoded(classifier), sets, ["a", "b"]).to_pylist()
    assert (rows[0]["label"], rows[0]["predicted"]) == (["a", "b"], ["a"])
    mixed = predictions_of(
        [[-2.0, -1.0], [2.0, 1.0], [-1.0, 2.0]] * 2, [[0, 0], [1, 1], [0, 1]] * 2, "multi_label_classification"
    )
    table = predictions_table("test", encoded(classifier), mixed, ["a", "b"])
    assert table["label"].to_pylist() == table["predicted"].to_pylist() == [[], ["a", "b"], ["b"]] * 2
