from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from finetune.errors import TrainingError
from finetune.recipe import Recipe
from finetune.runs.atomic_files import COMPLETE_MARKER
from finetune.runs.json_files import write_json
from finetune.runs.ownership import atomic_replace_dir, check_output_dir, restore_previous_on_failure, take_ownership
from finetune.runs.results import SplitSummary
from finetune.runs.run_folder import RunFolder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_replace_dir(tmp_path / "model") as aside:
            (aside / "weights").write_text(text)
    assert contents(tmp_path) == {"model/weights": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("where", ["writing", "rename", "replace"])
def test_what_was_there_is_lost_at_no_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with atomic_replace_dir(tmp_path / "model") as aside:
        (aside / "weights").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    rename = Path.rename
    with suppress(KeyboardInterrupt), atomic_replace_dir(tmp_path / "model") as aside:
        (aside / "weights").write_text("new")
        if where == "writing":
            interrupt()
        elif where == "replace":
            monkeypatch.setattr(Path, "replace", interrupt)
        else:
            monkeypatch.setattr(Path, "rename", lambda p, to: interrupt() if p.name == "model" else rename(p, to))
    assert contents(tmp_path) == {"model/weights": "old"}


RECIPE = Recipe.model_validate(
    {
        "task": {"problem_type": "single_label_classification"},
        "data": {"train_rows": [{"sentence": "a", "label": "b"}]},
        "model": {"model_type": "bert"},
        "output_dir": "run",
    }
)


def earlier_run(path: Path) -> tuple[RunFolder, dict[str, str]]:
    """A folder that holds a file, or a folder with one, at each place that a run writes to, and one more."""
    folder = RunFolder(path)
    for place in folder.written():
        if place.suffix:
            place.parent.mkdir(exist_ok=True)
            place.write_text("old")
        else:
            place.mkdir(parents=True)
            (place / "part").write_text("old")
    (path / "notes.txt").write_text("mine")
    return folder, contents(path)


def die_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process end at the `number`-th rename of a file."""
    rename, left = Path.rename, [number]

    def dying(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", dying)


PLACES = len(RunFolder(Path()).written())


@pytest.mark.parametrize("number", range(PLACES + 1))
def test_wherever_setting_aside_ends_nothing_of_the_earlier_run_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder, old = earlier_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        die_at(patch, number)
        with suppress(KeyboardInterrupt):
            take_ownership(folder, RECIPE, {}, {})
    for _ in range(2):  # started again; killed before it has anything, and started again
        take_ownership(folder, RECIPE, {}, {})
        found = contents(folder.path)
        assert {name.removeprefix(".previous/"): text for name, text in found.items() if text in ("old", "mine")} == old
        assert set(found) - {f".previous/{name}" for name in old} == {
            "notes.txt", "recipe.yaml", "environment.json", "data.json",
        }  # fmt: skip
    with suppress(KeyboardInterrupt), restore_previous_on_failure(folder, is_main_process=True):
        raise KeyboardInterrupt
    assert contents(folder.path) == old


@pytest.mark.parametrize("number", range(PLACES + 1))
def test_an_error_while_it_is_set_aside_puts_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder, old = earlier_run(tmp_path / "run")
    with suppress(KeyboardInterrupt), restore_previous_on_failure(folder, is_main_process=True):
        with monkeypatch.context() as patch:
            die_at(patch, number)
            take_ownership(folder, RECIPE, {}, {})
        raise KeyboardInterrupt
    assert contents(folder.path) == old


def test_a_run_that_has_a_checkpoint_stays_when_going_on_fails(tmp_path: Path) -> None:
    folder, _ = earlier_run(tmp_path / "run")
    take_ownership(folder, RECIPE, {}, {})
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    (folder.checkpoints / "step-000001" / COMPLETE_MARKER).write_text("")
    (folder.path / ".claimed").write_text("{}")  # it died as it claimed the folder once more
    before = contents(folder.path)
    with suppress(KeyboardInterrupt), restore_previous_on_failure(folder, is_main_process=True):
        raise KeyboardInterrupt
    assert contents(folder.path) == before


def test_an_old_run_with_ranks_by_importance_can_be_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    recipe = Recipe.model_validate(
        {
            "data": {"train_rows": [{"sentence": "a", "label": "b"}]},
            "evaluation": {"eval_strategy": "no"},
            "model": {"model_name_or_path": "some/model"},
            "peft": {},
            "output_dir": str(tmp_path),
        }
    )
    versions = dict.fromkeys(("started", "finetune", "python", "device", "mixed_precision"), "")
    take_ownership(
        folder, recipe, versions | {"packages": {}, "processes": 1, "seed": 1}, {"train": SplitSummary(1, {}, 1, 1, 0)}
    )
    valid = folder.recipe.read_text()
    folder.recipe.write_text(valid.replace("rank_pattern: {}", "rank_pattern: by_importance"))
    assert folder.recipe.read_text() != valid
    overwrite = recipe.model_copy(update={"overwrite_output_dir": True})
    with pytest.raises(TrainingError, match=r"is not a finetune run \(.*recipe\.yaml has a mistake"):
        check_output_dir(folder, overwrite)  # such a run always has its ranks
    write_json(folder.ranks, {"r": 4, "ranks": [3, 5], "importance": [1.0, 2.0], "steps": 20, "rows": 4})
    with pytest.raises(TrainingError, match="holds an earlier run"):
        check_output_dir(folder, recipe)
    check_output_dir(folder, overwrite)
    take_ownership(folder, overwrite, {}, {})
    assert not folder.ranks.exists()
    assert (tmp_path / ".previous" / "ranks.json").is_file()
