from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from rich.console import Console

from finetune.pipeline.context import RunContext
from finetune.pipeline.trackers import hyperparameters, start_trackers
from finetune.recipe.schema import Recipe
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, recipe


class RecordingTracker(GeneralTracker):
    """A tracker that stores the values it receives."""

    name, requires_logging_directory = "recorded", False

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int | None]] = []

    @property
    def tracker(self) -> dict[str, Any]:
        return self.values

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.values.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.logged.append((values, step))


def scratch_recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"output_dir": "x", **recipe(SCRATCH, **sections)})


def context(recipe: Recipe, folder: Path, accelerator: Any) -> RunContext:
    return RunContext(recipe, RunFolder(folder), accelerator, Console(quiet=True))


def test_a_tracker_receives_the_recipe_without_its_rows() -> None:
    tracker = RecordingTracker()
    run_recipe = scratch_recipe(training={"learning_rate": 0.003, "class_weights": {"yes": 2.0}})
    accelerator = Accelerator(cpu=True, log_with=tracker)
    start_trackers(context(run_recipe, Path("runs/a"), accelerator))
    assert tracker.values == hyperparameters(run_recipe)
    assert {type(value) for value in tracker.values.values()} <= {bool, int, float, str}
    assert not any(key.endswith("_rows") for key in tracker.values)
    assert "train_rows" in run_recipe.data.model_dump()
    expected = {
        "seed": run_recipe.seed, "training.learning_rate": 0.003, "training.class_weights": '{"yes": 2.0}',
        "model.model_name_or_path": "null", "peft": "null",
        "evaluation.metrics": json.dumps(run_recipe.evaluation.metrics),
    }  # fmt: skip
    assert {key: tracker.values[key] for key in expected} == expected
    accelerator.log({"loss": 1.0}, step=3)
    assert tracker.logged == [({"loss": 1.0}, 3)]


@pytest.mark.parametrize(
    ("folder", "project"),
    [
        ("runs/sst2-lora", "sst2-lora"),
        ("runs/it's a run: 3/", "it-s-a-run-3"),
        ("/", "finetune"),
        ("x" * 200, "x" * 128),
    ],
)
def test_the_project_name_has_only_characters_that_trackers_accept(folder: str, project: str) -> None:
    names: list[str] = []
    tracker = SimpleNamespace(init_trackers=lambda name, config: names.append(name))
    start_trackers(context(scratch_recipe(), Path(folder), tracker))
    assert names == [project]


def test_tensorboard_accepts_the_hyperparameters(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    start_trackers(context(scratch_recipe(), tmp_path / "a run", accelerator))
    accelerator.log({"loss": 1.0}, step=1)
    accelerator.end_training()
    (written,) = tmp_path.rglob("hparams.yml")
    assert written.is_relative_to(tmp_path / "a-run")
    assert yaml.safe_load(written.read_text()) == hyperparameters(scratch_recipe())
    assert len(list(tmp_path.rglob("events*"))) == 2  # one for the run and one for its hyperparameters
