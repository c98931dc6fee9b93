from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.hostile.commands import BASE, Inputs, call, changed, snapshot
from tests.hostile.data import data_files
from tests.hostile.recipes import overrides, recipe_texts, settings_of_a_run
from tests.hostile.runs import damage, damages, files_of, tiny_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("hostile")
    return Inputs(folder / "work", tiny_run(folder / "made"))


@pytest.fixture(autouse=True)
def cleared(inputs: Inputs) -> None:
    inputs.clear()


def examples(count: int) -> settings:
    # No shrinking: the first fault is shown unchanged, because each attempt takes seconds.
    return settings(max_examples=count, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


@examples(150)
@given(text=recipe_texts())
def test_any_recipe_is_checked_with_one_message(inputs: Inputs, text: bytes) -> None:
    assert inputs.check(text) == ""


@examples(150)
@given(changes=overrides())
def test_any_override_is_checked_with_one_message(inputs: Inputs, changes: list[str]) -> None:
    assert inputs.override(changes) == ""


@examples(15)
@given(changes=settings_of_a_run())
def test_any_settings_start_a_run_or_end_with_one_message(inputs: Inputs, changes: list[str]) -> None:
    assert inputs.settings(changes) == ""


@examples(25)
@given(drawn=data_files())
def test_any_data_file_is_read_or_ends_with_one_message(inputs: Inputs, drawn: tuple[str, bytes, list[str]]) -> None:
    assert inputs.data(drawn) == ""


def test_any_damaged_file_of_a_run_ends_with_one_message(inputs: Inputs) -> None:
    @examples(25)
    @given(drawn=damages(files_of(inputs.run)))
    def each(drawn: Any) -> None:
        assert inputs.damaged(drawn) == ""

    each()


def test_valid_inputs_pass(inputs: Inputs) -> None:
    """Valid inputs are accepted; otherwise all inputs above could be rejected for an unrelated reason."""
    for command in (["check"], ["train", "--dry-run"], ["train"]):
        outcome = call([command[0], str(inputs.recipe), *command[1:]], inputs.folder)
        assert (outcome.code, outcome.fault) == (0, ""), outcome.printed
    assert {"recipe.yaml", "model/config.json", "scores.json", "report.html"} <= snapshot(inputs.folder / "out").keys()
    second_train = call(["train", str(inputs.recipe)], inputs.folder)  # the folder contains a run now
    assert (second_train.code, second_train.fault) == (2, "")
    assert "output_dir" in second_train.printed


def test_faults_are_detected(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(arguments: list[str]) -> int:
        Path("leftover").touch()
        raise ValueError("not caught")

    monkeypatch.setattr("tests.hostile.commands.main", failing)
    assert "ValueError: not caught" in call(["check"], inputs.folder).fault
    assert changed({"a": b"1"}, snapshot(inputs.folder)).startswith("changed: a, leftover, loop")
    monkeypatch.setattr("tests.hostile.commands.main", lambda _: 1)
    assert call(["check"], inputs.folder).fault == "exit code 1"
    monkeypatch.setattr("tests.hostile.commands.main", lambda _: 2)
    assert "not one message" in call(["check"], inputs.folder).fault


def test_damage_changes_every_file(inputs: Inputs) -> None:
    for name in files_of(inputs.run):
        content = (inputs.run / name).read_bytes()
        variants = set()
        for number in range(20):
            file = inputs.folder / Path(name).name
            file.write_bytes(content)
            damage(file, random.Random(number))
            variants.add(file.read_bytes() if file.is_file() else None)
        assert len(variants - {content}) > 3, name
    assert BASE["output_dir"] == "out"
