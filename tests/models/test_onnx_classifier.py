from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.errors import DataError, ModelError
from finetune.models import onnx_classifier
from finetune.models.classifier import Classifier
from finetune.models.conformal import ConformalScores, write_conformal
from finetune.models.onnx_classifier import load_onnx
from finetune.models.onnx_export import write_onnx
from finetune.pipeline.export_folder import write_folder
from tests.conftest import SENTENCES
from tests.support.families import build, save_checkpoint
from tests.support.helpers import assert_equal_up_to_rounding

PAIRS = [SENTENCES, SENTENCES[::-1]]


def export_to(folder: Path, classifier: Classifier) -> Path:
    """Export a classifier without the checks of the command."""
    folder.mkdir()
    inputs = classifier.tokenizer(["the cat", "the dog sat on"], padding=True, return_tensors="pt")
    write_onnx(classifier.base, dict(inputs), folder / "model.onnx")
    write_folder(classifier, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A small BERT classifier for texts of at most 16 tokens, and its exported folder."""
    classifier = build(save_checkpoint("bert", tmp_path_factory.mktemp("bert")))
    return classifier, export_to(tmp_path_factory.mktemp("exported") / "onnx", classifier)


@pytest.mark.parametrize("columns", [[SENTENCES], PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_logits_are_those_of_the_classifier_in_the_order_of_the_texts(
    exported: tuple[Classifier, Path], columns: list[list[str]], batch_size: int
) -> None:
    classifier, folder = exported
    long = [[*column, " ".join(column)] for column in columns]  # the last one is cut to 16 tokens
    expected = classifier.logits(long, 2)
    assert_equal_up_to_rounding(load_onnx(folder).logits(long, batch_size), expected)
    assert np.ptp(expected[:, 0]) > 1e-3  # the rows differ, so their order matters


def test_the_scores_for_prediction_sets_are_read(exported: tuple[Classifier, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "onnx")
    assert load_onnx(folder).rules.conformal is None
    scores = ConformalScores(((0.1, 0.2),) * len(exported[0].label_names), (0.5,))
    write_conformal(scores, folder)
    assert load_onnx(folder).rules.conformal == scores
    (folder / "conformal.json").write_text("{")
    with pytest.raises(ModelError, match=r"conformal\.json is damaged"):
        load_onnx(folder)


def test_left_padding_and_truncation_on_the_left(tmp_path: Path) -> None:
    classifier = build(save_checkpoint("bert", tmp_path / "bert"))
    classifier.tokenizer.padding_side = classifier.tokenizer.truncation_side = "left"
    texts = [*SENTENCES, " ".join(SENTENCES)]
    expected = classifier.logits([texts], 3)
    classifier.tokenizer.padding_side = "right"
    assert np.abs(build(tmp_path / "bert").logits([texts], 3) - expected).max() > 1e-3  # the sides matter
    classifier.tokenizer.padding_side = "left"
    assert_equal_up_to_rounding(load_onnx(export_to(tmp_path / "onnx", classifier)).logits([texts], 3), expected)


def test_each_batch_is_reported(exported: tuple[Classifier, Path]) -> None:
    loaded, sizes = load_onnx(exported[1]), []
    loaded.encoded_logits(loaded.encoder.encode([SENTENCES]), 4, sizes.append)
    assert sizes == [4, 2]


def test_no_texts_have_no_logits(exported: tuple[Classifier, Path]) -> None:
    assert load_onnx(exported[1]).logits([[]], 8).shape == (0, 5)


def test_a_batch_has_at_least_one_text(exported: tuple[Classifier, Path]) -> None:
    with pytest.raises(DataError, match="batch_size is 0; it must be at least 1"):
        load_onnx(exported[1]).logits([SENTENCES], 0)


def test_what_is_needed_to_use_the_model_is_loaded(exported: tuple[Classifier, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported[1], tmp_path / "onnx"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"problem_type": "multi_label_classification", "thresholds": [0.1, 0.2, 0.3, 0.4, 1], "temperature": 2}
    (folder / "config.json").write_text(json.dumps(config | {"text_columns": ["question", "answer"]}))
    loaded = load_onnx(folder)
    assert (loaded.max_length, loaded.text_columns) == (16, ("question", "answer"))
    assert loaded.rules.label_names == ("zeta", "alpha", "no", "mid", "beta")
    assert loaded.rules.thresholds == (0.1, 0.2, 0.3, 0.4, 1)
    assert loaded.rules.temperature == 2


def test_threads_share_a_classifier(exported: tuple[Classifier, Path]) -> None:
    loaded = load_onnx(exported[1])
    expected = loaded.logits([SENTENCES], 2)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: loaded.logits([SENTENCES], 2), range(16)))
    for result in results:
        np.testing.assert_array_equal(result, expected)


def _changed(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("config.json", lambda content: content[:100]),
        ("config.json", lambda content: b"[1]"),
        ("config.json", lambda content: b"{}"),
        ("config.json", lambda content: b"\xff\xfe"),
        ("config.json", _changed(format="other")),
        ("config.json", _changed(problem_type="other")),
        ("config.json", _changed(max_length="long")),
        ("config.json", _changed(label_names=[])),
        ("config.json", _changed(text_columns=["a", "b", "c"])),
        ("config.json", _changed(truncation_side="middle")),
        ("config.json", _changed(thresholds=["high"])),
        ("model.onnx", lambda content: content[:500]),
        ("model.onnx", lambda content: b""),
        ("tokenizer.json", lambda content: content[:500]),
        ("tokenizer.json", lambda content: b"{}"),
        *((file, None) for file in ("config.json", "model.onnx", "tokenizer.json")),
    ],
)
def test_a_damaged_or_missing_file_is_one_message(
    exported: tuple[Classifier, Path], tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None
) -> None:
    folder = Path(shutil.copytree(exported[1], tmp_path / "onnx"))
    if damage is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(ModelError, match=r"missing or damaged \(.*\); export the run again") as error:
        load_onnx(folder)
    assert str(folder / file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("library", ["onnxruntime", "tokenizers"])
def test_a_missing_library_is_one_message(
    exported: tuple[Classifier, Path], library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=rf"needs {library}, .*run `pip install onnxruntime tokenizers`"):
        load_onnx(exported[1])


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def number(variable: str, allowed: set[int]) -> int:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        scheduler: dict[str, Any] = {"sched_getaffinity": lambda _: allowed, "cpu_count": lambda: 8}
        for name, function in scheduler.items():
            monkeypatch.setattr(os, name, function, raising=False)
        return onnx_classifier._num_threads()

    assert number("3", {0, 1}) == 3
    assert number("", {0, 1}) == 2
    assert number("", set(range(8))) == 0  # all of them: onnxruntime then uses one per core
