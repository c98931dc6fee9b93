"""Sweep files: what they mean, and the message for every mistake in one. Nothing here needs Optuna."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.errors import RecipeError
from finetune.recipe.shipped import shipped_sweeps
from finetune.recipe.sweep_loader import is_sweep_file, load_sweep
from finetune.recipe.sweep_space import SweepObjective, combinations
from tests.support.recipes import MINIMAL

RATE = "training.learning_rate"
SPACE: dict[str, Any] = {RATE: {"low": 1e-5, "high": 1e-3, "log": True}}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a sweep of the smallest recipe, with these keys; None removes a key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(MINIMAL)

    def write_sweep(**keys: Any) -> Path:
        content = {"recipe": "base.yaml", "trials": 4, "space": SPACE} | keys
        path = tmp_path / "rates.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
        )
        return path

    return write_sweep


def test_a_trial_has_its_values_the_rows_of_all_trials_and_no_test_rows(write: Write, tmp_path: Path) -> None:
    options = {"small": {"peft": {"r": 2, "lora_alpha": 4}}, "none": {"peft": None}}
    space = SPACE | {"adapter": options, "seed": [1, 2]}
    rows = "[{sentence: e f, label: x}]"
    loaded = load_sweep(write(space=space, seeds=[5, 6], overrides={"training": {"num_train_epochs": 2}}),
                        [f"data.test_rows={rows}"])  # fmt: skip
    trial = loaded.trial_recipe({RATE: 2e-5, "adapter": "small", "seed": 2}, tmp_path / "trial")
    assert (trial.training.learning_rate, trial.seed, trial.training.num_train_epochs) == (2e-5, 2, 2)
    assert trial.peft is not None
    assert (trial.peft.r, trial.peft.lora_alpha) == (2, 4)
    assert (trial.data.split_seed, trial.data.test_rows, trial.seeds) == (1, None, [5, 6])
    assert trial.checkpoint.resume_from_checkpoint == "auto"
    best = loaded.recipe({RATE: 2e-5, "adapter": "none", "seed": 2}, output_dir="x")
    assert (best.peft, best.seeds, best.checkpoint.resume_from_checkpoint) == (None, None, None)
    assert best.data.test_rows is not None
    with_test_rows = load_sweep(write(score_test_rows=True), [f"data.test_rows={rows}"])
    assert with_test_rows.first_trial().data.test_rows is not None


def test_the_defaults_follow_from_the_recipe_and_the_name_of_the_file(write: Write, tmp_path: Path) -> None:
    loaded = load_sweep(write())
    assert loaded.objectives == [SweepObjective("accuracy", "maximize")]
    assert (loaded.name, loaded.sweep.output_dir) == ("rates", str(tmp_path / "runs" / "rates"))
    costs = [{"name": "loss"}, {"name": "train_seconds", "direction": "maximize"}]
    assert [o.direction for o in load_sweep(write(objectives=costs)).objectives] == ["minimize", "maximize"]
    assert load_sweep(write(), trials=9).planned() == 9
    assert load_sweep(write(), [], trials=None).planned() == 4


def test_a_grid_has_every_combination_once(write: Write) -> None:
    space = {
        RATE: [1e-5, 1e-4],
        "training.num_train_epochs": {"low": 1, "high": 3},
        "training.weight_decay": {"low": 0.1, "high": 0.3, "step": 0.1},
    }
    loaded = load_sweep(write(space=space, sampler="grid", trials=None))
    grid = list(combinations(loaded.parameters))
    assert (loaded.planned(), len(grid), len({tuple(values.items()) for values in grid})) == (18, 18, 18)
    assert {values["training.weight_decay"] for values in grid} == {0.1, 0.2, 0.3}
    assert {values["training.num_train_epochs"] for values in grid} == {1, 2, 3}
    assert load_sweep(write(space=space, sampler="grid", trials=5)).planned() == 5


def test_every_shipped_sweep_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"heads", "learning_rate", "lora_rank"} <= shipped_sweeps().keys()
    for name in shipped_sweeps():
        loaded = load_sweep(f"sweep:{name}")
        assert loaded.sweep.output_dir == str(tmp_path / "runs" / name)
        assert is_sweep_file(f"sweep:{name}")
    assert load_sweep("sweep:heads").describe().startswith("9 trials with 5 seeds each (grid) over heads")
    with pytest.raises(RecipeError, match=r"there is no sweep 'sweep:lora_rnk'; finetune comes with .*mean 'lora_r"):
        load_sweep("sweep:lora_rnk")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key of the space": (
        {"space": {"training.learning_rte": [1e-5]}},
        r"space.training.learning_rte \(line \d\): unknown key; did you mean 'learning_rate'\?",
    ),
    "value that the schema refuses": (
        {"space": {RATE: [1e-5, "fast"]}},
        r"space.training.learning_rate \(line \d\): given 'fast'; must be",
    ),
    "end of a range that the schema refuses": (
        {"space": {"training.label_smoothing_factor": {"low": 0.1, "high": 1.5}}},
        r"space.training.label_smoothing_factor .*: given 1.5; must be less than 1",
    ),
    "value that does not fit the recipe": (
        {"space": {"training.freeze_layers": [0, 1]}, "overrides": {"peft.r": 4}},
        "space.training.freeze_layers .*: LoRA trains only its adapters",
    ),
    "empty space": ({"space": {}}, r"space \(line \d\): is empty; name a recipe key"),
    "no values": ({"space": {RATE: []}}, "space.training.learning_rate .*: has no values; list at least one"),
    "a value twice": ({"space": {RATE: [1, 1.0]}}, "lists 1.0 twice .*; list each value once"),
    "a single value": ({"space": {RATE: 1e-5}}, "given 1e-05; give a list of values, or a range such as {low"),
    "a range with an unknown key": (
        {"space": {RATE: {"low": 1, "hgh": 2}}},
        "space.training.learning_rate.high: is missing|unknown key of a range; it has low, high, log, step",
    ),
    "an option that is no mapping": ({"space": {"size": {"small": 3}}}, "option small: given 3; must be a mapping"),
    "an option that sets a key twice": (
        {"space": {"size": {"small": {"peft": None, "peft.r": 3}}}},
        "option small sets both peft and peft.r; remove one of them",
    ),
    "two parameters that set a key": (
        {"space": {"size": {"small": {"peft.r": 2}, "none": {"peft": None}}, "peft.r": [1]}},
        r"space.peft.r .*: sets peft.r, and size sets peft",
    ),
    "a key that is also an override": (
        {"overrides": {RATE: 1e-4}},
        "space.training.learning_rate .*: training.learning_rate varies, but training.learning_rate is also set by an",
    ),
    "a key of the sweep itself": (
        {"space": {"output_dir": ["a", "b"]}},
        "space.output_dir .*: output_dir cannot be set: each trial gets a folder in the output_dir of the sweep",
    ),
    "other validation rows": (
        {"space": {"data.max_eval_samples": [1, 2]}},
        "data.max_eval_samples changes the validation rows, so scores could not be compared; remove it",
    ),
    "no validation rows": (
        {"overrides": {"data.validation_rows": None, "data.validation_size": None, "evaluation.eval_strategy": "no"}},
        "recipe .*: there are no validation rows to choose the best trial by; give data.validation_file",
    ),
    "an override with a mistake": ({"overrides": {"sed": 3}}, "overrides.sed .*: unknown key; did you mean 'seed'"),
    "an unknown objective": (
        {"objectives": [{"name": "acuracy"}]},
        r"objectives.0.name .*: given 'acuracy'; must be one of accuracy, .*did you mean 'accuracy'\?",
    ),
    "pruning by costs": (
        {"objectives": [{"name": "train_seconds"}], "pruner": "median"},
        "train_seconds is known only after training, so pruner median has nothing to compare; set pruner: none",
    ),
    "pruning without evaluations": (
        {"overrides": {"evaluation.eval_strategy": "no"}, "pruner": "median"},
        "pruner .*: pruner median needs evaluations during training, but eval_strategy is no",
    ),
    "heads on test rows": (
        {"overrides": {"head_importance.curve_split": "test"}},
        "head_importance uses the test rows, which trials do not read; set score_test_rows: true",
    ),
    "a grid without a step": (
        {"sampler": "grid", "trials": None},
        "sampler grid needs a list of values, or a range with a step; add one, or set sampler: random or tpe",
    ),
    "a huge grid": (
        {"sampler": "grid", "trials": None, "space": {"data.max_length": {"low": 4, "high": 99999}}},
        "the grid has 99,996 combinations, and at most 10,000 are allowed; use sampler: random",
    ),
    "an unknown key": ({"sampler_sed": 1}, r"sampler_sed \(line \d\): unknown key; did you mean 'sampler_seed'\?"),
    "a key of the recipe": ({"data.max_length": 8}, "data.max_length .*: unknown key; keys of the recipe are changed"),
    "a missing key": ({"recipe": None}, "recipe: is missing and has no default; add it"),
    "a wrong choice": ({"sampler": "gird"}, "sampler .*: given 'gird'; must be 'grid', 'random' or 'tpe'"),
    "no recipe": ({"recipe": "nowhere.yaml"}, r"there is no recipe '.*nowhere.yaml'; correct the path"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_sweep_is_one_message(keys: dict[str, Any], message: str, write: Write, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_sweep(write(**keys))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.yaml", "rates.yaml"]


def test_a_mistake_in_the_recipe_alone_is_reported_as_for_train(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "base.yaml").write_text(f"{MINIMAL}sed: 3\n")
    with pytest.raises(
        RecipeError, match=r"base.yaml has a mistake:\n  sed \(line 3\): unknown key; did you mean 'seed'"
    ):
        load_sweep(path)
    with pytest.raises(RecipeError, match=r"base.yaml is a recipe, not a sweep; run it with `finetune train`"):
        load_sweep(tmp_path / "base.yaml")
    assert not is_sweep_file(tmp_path / "base.yaml")
    assert not is_sweep_file(tmp_path / "nowhere.yaml")
