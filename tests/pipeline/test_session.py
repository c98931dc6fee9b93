from __future__ import annotations

from pathlib import Path

import pytest

from finetune.pipeline.session import start, with_precision
from finetune.recipe.schema import Recipe
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, recipe


def test_auto_precision_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.pipeline.session.device_precision", lambda use_cpu: "bf16" if use_cpu else "no")
    for training, expected in (
        ({"mixed_precision": "auto"}, "no"),
        ({"mixed_precision": "auto", "use_cpu": True}, "bf16"),
        ({"mixed_precision": "no", "use_cpu": True}, "no"),
    ):
        unresolved = Recipe.model_validate({"output_dir": "x", **recipe(SCRATCH), "training": training})
        assert with_precision(unresolved).training.mixed_precision == expected


def test_the_runs_of_a_process_may_differ_in_precision(tmp_path: Path) -> None:
    for precision in ("no", "bf16", "int8", "int8", "no"):
        training = {"mixed_precision": precision, "use_cpu": True, "num_threads": 1}
        of_run = Recipe.model_validate({"output_dir": "x", **recipe(SCRATCH), "training": training})
        assert start(of_run, RunFolder(tmp_path)).accelerator.mixed_precision == precision
