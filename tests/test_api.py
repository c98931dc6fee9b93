"""The Python API: the names that can be imported from finetune."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import finetune
from finetune.errors import DataError
from tests.support.helpers import FLOAT32

NAMES = [
    "Classifier",
    "Prediction",
    "Recipe",
    "analyze_heads",
    "compare",
    "evaluate",
    "load_classifier",
    "load_recipe",
    "load_sweep",
    "prune",
    "sweep",
    "train",
    "train_series",
]


def test_the_public_names_are_pinned_and_exist() -> None:
    assert finetune.__all__ == NAMES
    assert sorted(finetune._MODULES) == NAMES
    for name in NAMES:
        value = getattr(finetune, name)
        assert value.__name__ == name
        assert value.__doc__
    assert set(NAMES) <= set(dir(finetune))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'finetune' has no attribute 'trian'"):
        _ = finetune.trian  # type: ignore[attr-defined]


def test_importing_finetune_loads_no_other_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import finetune\n"
        "print(len(dir(finetune)), *sorted({name.partition('.')[0] for name in sys.modules if name not in before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, *loaded = done.stdout.split()
    assert int(count) > len(NAMES)
    assert set(loaded) <= {"finetune", *sys.stdlib_module_names}
    assert "finetune" in loaded


def test_recipes_need_no_torch() -> None:
    program = "import sys; from finetune import load_recipe, Recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("run", ["small_run", "lora_run"])
@pytest.mark.parametrize("part", ["", "model"])
def test_a_loaded_classifier_predicts_what_the_run_predicted(
    run: str, part: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    expected = pq.read_table(folder / "predictions.parquet").to_pylist()
    classifier = finetune.load_classifier(folder / part)
    assert classifier.label_names == ["0", "1"]
    assert classifier.text_columns == ("sentence",)
    predictions = classifier.predict([row["text"] for row in expected])
    assert len(predictions) == len(expected) == 80
    for prediction, row in zip(predictions, expected, strict=True):
        assert prediction.label == row["predicted"]
        assert list(prediction.probabilities.values()) == pytest.approx(row["probabilities"], abs=FLOAT32)


def test_a_moved_model_folder_is_enough(small_run: Path, tmp_path: Path) -> None:
    model = shutil.copytree(small_run / "model", tmp_path / "somewhere")
    texts = ["the cat sat on the mat", "the dog"]
    assert finetune.load_classifier(str(model)).predict(texts) == finetune.load_classifier(small_run).predict(texts)


def test_a_folder_without_a_model_gives_one_error_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*/nowhere; name a run folder"):
        finetune.load_classifier(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no trained model; name a run folder whose training has finished"):
        finetune.load_classifier(tmp_path)


def test_heads_are_turned_off_in_one_line(small_run: Path) -> None:
    classifier = finetune.load_classifier(small_run)
    texts = ["the cat sat on the mat", "a dog is now on it"]
    expected = classifier.predict(texts)
    with classifier.heads_off([(0, 1), (1, 3)]):
        changed = classifier.predict(texts)
    assert changed != expected
    assert classifier.predict(texts) == expected
