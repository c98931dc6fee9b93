"""The function `on_evaluation` of `train`: what it is given, and how it stops training."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.errors import TrainingStopped
from finetune.pipeline import train as pipeline
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from tests.support.finished_runs import SCRATCH, recipe


def test_training_stops_after_an_evaluation_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    content = recipe(SCRATCH, checkpoint={"save_strategy": "epoch"}, training={"num_train_epochs": 3})
    file.write_text(yaml.safe_dump({**content, "head_importance": None}))
    loaded = load_recipe(file, [f"output_dir={run}"])
    calls: list[tuple[int, dict[str, float | None]]] = []
    computed: list[tuple[str, int]] = []  # what a stopped run does not need, and how many evaluations came before

    def recorded(name: str, context: Any, *arguments: Any) -> Any:
        assert context.folder.training.is_file()  # training has ended
        computed.append((name, len(calls)))
        return functions[name](context, *arguments)

    functions: dict[str, Any] = {name: getattr(pipeline, name) for name in ("fit_baselines", "training_label_errors")}
    for name in functions:
        monkeypatch.setattr(pipeline, name, partial(recorded, name))

    def stop_after_two(step: int, values: dict[str, float | None]) -> bool:
        calls.append((step, values))
        return len(calls) == 2

    with pytest.raises(TrainingStopped, match="training was stopped after the evaluation at step 24 of 36"):
        train(loaded, on_evaluation=stop_after_two)
    entries = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    assert calls == [(e["step"], {"loss": e["eval_loss"], "accuracy": e["eval_accuracy"]}) for e in evaluations]
    assert not (run / "model").exists()
    assert not computed

    resumed = load_recipe(file, [f"output_dir={run}", "checkpoint.resume_from_checkpoint=auto"])
    train(resumed, on_evaluation=lambda step, values: bool(calls.append((step, values))) or step == 36)
    assert [step for step, _ in calls] == [12, 24, 24, 36]  # True after the last step changes nothing
    assert calls[1] == calls[2]
    assert computed == [("fit_baselines", 4), ("training_label_errors", 4)]
    assert (run / "baselines.json").is_file()
    assert (run / "scores.json").is_file()
