from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.errors import DataError, RecipeError
from finetune.finished import open_run
from finetune.scoring import predict
from tests.finished_runs import contents
from tests.helpers import FLOAT32


def test_a_finished_run_comes_back_as_it_was(lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "moved"))
    before = contents(run)
    found = open_run(run, ["head_importance.method=fisher"])
    assert found.folder.path == run
    assert found.recipe.seed == 4
    assert found.recipe.head_importance is not None
    assert found.recipe.head_importance.methods() == ["fisher"]
    assert {name: len(split) for name, split in found.material.splits.items()} == {
        "train": 48, "validation": 40, "test": 40,
    }  # fmt: skip
    scores = json.loads(before["scores.json"])
    for name, split in found.material.scored().items():
        values = predict(found.material.classifier, split, batch_size=64, accelerator=found.accelerator).metrics()
        assert values["accuracy"] == scores[name]["metrics"]["accuracy"]["value"]
        assert values["loss"] == pytest.approx(scores[name]["loss"], rel=FLOAT32)
    assert np.bincount(found.material.splits["train"].labels).tolist() == [24, 24]
    assert contents(run) == before


def test_a_folder_that_holds_no_finished_run_is_named(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    shutil.rmtree(run / "model")
    with pytest.raises(DataError, match=r"run holds no finished run \(no model\); name the folder that `train` wrote"):
        open_run(run)
    with pytest.raises(DataError, match="nowhere holds no finished run"):
        open_run(tmp_path / "nowhere")


def test_a_change_that_asks_for_rows_which_are_not_there_is_refused(small_run: Path) -> None:
    with pytest.raises(DataError, match=r"head_importance\.split is test, but there are no such rows"):
        open_run(small_run, ["head_importance.split=test", "data.test_rows=null"])
    with pytest.raises(RecipeError, match=r"'fishr'.*did you mean 'fisher'"):
        open_run(small_run, ["head_importance.method=fishr"])
