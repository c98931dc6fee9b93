from __future__ import annotations

import pytest

from finetune.pipeline.session import with_precision
from finetune.recipe.schema import Recipe
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
