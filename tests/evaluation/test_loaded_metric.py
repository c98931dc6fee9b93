"""Metrics from Python files: names of their values, inputs, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.errors import RecipeError
from finetune.evaluation.loaded_metric import check_loaded_metrics, loaded_values
from finetune.evaluation.metrics import metric_values
from tests.support.metric_rows import COST, scored_rows, write_cost_metric

BINARY = scored_rows("single_label_classification", classes=2)
TEXTS = COST.replace("from .weights import MISSED", "").replace('datasets.Value("int64")', 'datasets.Value("string")')
TEXTS = TEXTS.replace(
    "        costs", "        assert set(references) == {'label 0', 'label 1'}\n        MISSED = 1\n        costs"
)
SCORES = TEXTS.replace("predictions", "prediction_scores").replace(
    'datasets.Value("string")', 'datasets.Value("float32")'
)
SCORES = SCORES.replace("assert set(references) == {'label 0', 'label 1'}", "pass")


def test_one_number_has_the_name_of_the_file_and_several_their_keys(tmp_path: Path) -> None:
    one = write_cost_metric(tmp_path)
    assert list(loaded_values(str(one), BINARY)) == ["cost_error"]
    folder = tmp_path / "costs"
    folder.mkdir()
    file = write_cost_metric(folder, '"costs": sum(costs), "largest": max(costs), "all": costs')
    file.rename(folder / "costs.py")
    wrong = (BINARY.labels != BINARY.predicted) * np.where(BINARY.labels, 5, 1)
    assert loaded_values(str(folder), BINARY) == {"costs": wrong.sum(), "costs_largest": wrong.max()}
    assert list(metric_values(["accuracy", "roc_auc", str(folder)], BINARY)) == [
        *("accuracy", "roc_auc", "costs", "costs_largest"),
    ]


def test_texts_and_scores_are_given_if_the_metric_reads_them(tmp_path: Path) -> None:
    (tmp_path / "texts.py").write_text(TEXTS.replace("RESULT", '"x": sum(costs)'))
    assert loaded_values(str(tmp_path / "texts.py"), BINARY) == {"texts": (BINARY.labels != BINARY.predicted).sum()}
    (tmp_path / "scores.py").write_text(SCORES.replace("RESULT", '"x": max(prediction_scores)'))
    assert loaded_values(str(tmp_path / "scores.py"), BINARY)["scores"] == pytest.approx(BINARY.scores[:, 1].max())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a", "x = 1", r"'.*a.py' cannot be loaded \(ValueError: it defines 0 metrics\); .* from evaluate.Metric"),
        ("b", "raise OSError('no disk')", r"cannot be loaded \(OSError: no disk\)"),
        ("c", TEXTS.replace("RESULT", '"x": missing'), r"fails on 40 rows of this data: NameError"),
        ("d", TEXTS.replace("RESULT", '"x": "text"'), "returns no number"),
        ("e", TEXTS.replace('{"predictions"', '{"sources": datasets.Value("string"), "predictions"'), "needs sources;"),
        ("f", TEXTS.replace("RESULT", '"x": 1, "y": 2'), r"given 'f_z'; '.*f.py' has the values f_x, f_y"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_training(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        check_loaded_metrics({name: str(file)}, BINARY, "f_z")


def test_a_metric_that_fails_later_is_undefined(tmp_path: Path) -> None:
    (tmp_path / "g.py").write_text(TEXTS.replace("RESULT", '"x": 1'))
    one_class = BINARY.select(np.flatnonzero(BINARY.labels == 0))
    assert np.isnan(metric_values([str(tmp_path / "g.py")], one_class)["g"])
