"""A run that reads long texts in windows: every command gives the same predictions."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from finetune.cli import main
from finetune.models.loading import load_classifier
from finetune.models.onnx_classifier import load_onnx
from tests.conftest import SENTENCES
from tests.support.finished_runs import finished, read_back, recipe
from tests.support.helpers import assert_equal_up_to_rounding

TEXTS = [*SENTENCES[:2], " ".join(SENTENCES), " ".join(SENTENCES[::-1] * 2), "the cat"]


def rows(count: int) -> list[dict[str, object]]:
    """Return rows of which every third has one sentence, and the others four to eleven."""
    texts = [
        " ".join(SENTENCES[(row + k) % 6] for k in range(1 if row % 3 == 0 else 4 + row % 8)) for row in range(count)
    ]
    return [{"sentence": text, "label": int("dog" in text)} for text in texts]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A run with windows of 16 tokens and LoRA, whose heads are analyzed."""
    content = recipe(
        {"model_name_or_path": str(tiny_bert)},
        data={
            "train_rows": rows(24), "validation_rows": rows(12), "test_rows": rows(9)[::-1], "max_length": 16,
            "long_text": "window", "window_stride": 4, "window_pooling": "max", "max_windows": 5,
        },
        training={"num_train_epochs": 1, "rdrop_alpha": 1.0},
        evaluation={"baselines": ["frozen_encoder"]},
        head_importance={"method": ["gradient"], "random_orders": 1, "explained_rows": 2},
    )  # fmt: skip
    content["peft"] = {"r": 2, "lora_alpha": 4}
    return finished(tmp_path_factory.mktemp("windows"), content)


def test_new_texts_get_the_predictions_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    table = pq.read_table(run / "predictions.parquet").to_pylist()
    written = [row for row in table if row["split"] == "test"]
    texts = [str(row["sentence"]) for row in rows(9)[::-1]]
    predictions = load_classifier(run / "model").predict(texts, batch_size=2)
    assert [row["predicted"] for row in written] == [prediction.label for prediction in predictions]
    file, output = tmp_path / "rows.csv", tmp_path / "labeled.csv"
    file.write_text("\n".join(["sentence", *texts]) + "\n")
    assert main(["predict", str(run), str(file), "--output", str(output)]) == 0
    with output.open() as lines:
        assert [row["predicted"] for row in csv.DictReader(lines)] == [prediction.label for prediction in predictions]


def test_an_exported_model_reads_the_same_windows(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run)]) == 0
    classifier, exported = load_classifier(run / "model"), load_onnx(run / "onnx")
    assert exported.long_text == classifier.long_text
    expected = classifier.logits([TEXTS], 2)
    assert_equal_up_to_rounding(exported.logits([TEXTS], 3), expected, 1e-5)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [str(run / "onnx" / "serve.py"), *TEXTS])
    runpy.run_path(sys.argv[0], run_name="__main__")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    probabilities = classifier.rules.probabilities(expected)
    np.testing.assert_allclose([float(value) for _, value in printed], probabilities.max(1), atol=2e-4)
    assert "of longer texts the model reads their first 5 windows of 16 tokens" in (run / "onnx/README.md").read_text()
    config = json.loads((run / "onnx" / "config.json").read_text())
    (run / "onnx" / "config.json").write_text(json.dumps(config | {"long_text": {"mode": "all"}}))
    assert main(["predict", str(run / "onnx"), str(run / "rows.csv")]) == 2


def test_a_run_is_read_back_as_it_was_trained(run: Path) -> None:
    inputs = read_back(run).inputs
    assert inputs.summary["train"].truncated_share > 0  # some rows have more than 5 windows
    assert inputs.splits["train"].windows is not None
    assert set(inputs.splits["train"].windows) == {1, 2, 3, 4, 5}
    truncated = read_back(run, "data.long_text=truncate", "data.window_stride=null", "data.window_pooling=max",
                          "data.max_windows=16").inputs  # fmt: skip
    assert truncated.splits["train"].windows is None
    assert not truncated.classifier.long_text.windows


MISTAKES = {
    "window_stride: 4": "window_stride applies only to long_text: window, and long_text is truncate",
    "long_text: window, max_length: 8": "long_text: window needs max_length of at least 16, got 8",
    "long_text: window, max_length: 16, window_stride: 9": "window_stride is 9; two windows share at most half of "
    "max_length, 8 tokens",
    "long_text: all": "data.long_text",
}


@pytest.mark.parametrize(("keys", "message"), MISTAKES.items())
def test_keys_that_do_not_fit_are_reported(
    keys: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = recipe({"model_type": "bert"})
    content["data"] |= {"max_length": 32} | yaml.safe_load(f"{{{keys}}}")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["check", str(path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("key", ["contrastive_weight: 0.1", "cache_frozen_layers: true"])
def test_options_that_need_one_sequence_per_row_are_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = recipe({"model_name_or_path": "none"}, data={"long_text": "window"})
    content["training"] |= {"freeze_embeddings": True, "freeze_layers": 1, **yaml.safe_load(key)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["check", str(path)]) == 2
    assert "with data.long_text: window a row has" in " ".join(capsys.readouterr().err.split())
