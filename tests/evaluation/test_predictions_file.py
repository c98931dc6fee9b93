"""The file of predictions: finetune/evaluation/predictions_file.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator

from finetune.evaluation.prediction import predict
from finetune.evaluation.predictions_file import predictions_table, read_baseline_predictions, write_predictions
from finetune.runs.run_folder import RunFolder
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


@pytest.mark.parametrize(
    ("labels", "predicted", "problem_type"),
    [
        ([0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0], "single_label_classification"),
        ([[1, 0], [1, 1], [0, 0]] * 2, [[0, 0], [1, 1], [0, 1]] * 2, "multi_label_classification"),
        ([0.5, 1.5, 2.0] * 2, [1.0, 1.25, 3.0] * 2, "regression"),
    ],
)
def test_predictions_of_baselines_are_read_back_for_the_same_rows(
    tiny_bert: Path, tmp_path: Path, labels: list[object], predicted: list[object], problem_type: str
) -> None:
    folder = RunFolder(tmp_path)
    split = replace(encoded(tiny_classifier(tiny_bert)), labels=np.array(labels))
    baselines = {"tfidf": np.array(predicted)}
    width = 1 if problem_type == "regression" else 2
    predictions = predictions_of([[0.0] * width] * 6, labels, problem_type)
    table = predictions_table("test", split, predictions, ["a", "b"], baselines)
    assert "baseline_tfidf" in table.column_names
    assert read_baseline_predictions(folder, {"test": split}, ["a", "b"]) == {}  # there is no file
    write_predictions(folder.predictions, [table])
    stored = read_baseline_predictions(folder, {"test": split}, ["a", "b"])
    assert stored.keys() == {"tfidf"}
    assert stored["tfidf"]["test"].tolist() == predicted
    assert stored["tfidf"]["test"].dtype == baselines["tfidf"].dtype
    others = [
        replace(split, labels=split.labels[::-1].copy()),
        replace(split, texts=split.texts.select(range(5, -1, -1))),
        replace(split, texts=split.texts.select(range(5)), labels=split.labels[:5], lengths=split.lengths[:5]),
    ]
    assert [read_baseline_predictions(folder, {"test": other}, ["a", "b"]) for other in others] == [{}] * 3
    if problem_type != "regression":
        assert read_baseline_predictions(folder, {"test": split}, ["a", "c"]) == {}
