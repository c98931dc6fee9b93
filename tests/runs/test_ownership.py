from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from finetune.errors import TrainingError
from finetune.recipe.schema import Recipe
from finetune.runs.completion_marker import COMPLETE_MARKER
from finetune.runs.json_files import write_json
from finetune.runs.ownership import (
    check_output_dir,
    output_folder,
    restore_previous_on_failure,
    take_ownership,
    take_series_ownership,
)
from finetune.runs.results import SplitSummary
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import MemberResult, SeriesResult


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


RECIPE = Recipe.model_validate(
    {
        "task": {"problem_type": "single_label_classification"},
        "data": {"train_rows": [{"sentence": "a", "label": "b"}]},
        "model": {"model_type": "bert"},
        "output_dir": "run",
    }
)


def folder_of(kind: str, path: Path) -> RunFolder | SeriesFolder:
    return RunFolder(path) if kind == "run" else SeriesFolder(path, [1, 2])


def take(folder: RunFolder | SeriesFolder) -> None:
    if isinstance(folder, RunFolder):
        take_ownership(folder, RECIPE, {}, {})
    else:
        take_series_ownership(folder, RECIPE, SeriesResult("accuracy", [MemberResult(1), MemberResult(2)]))


def earlier_run(path: Path, kind: str = "run") -> tuple[RunFolder | SeriesFolder, dict[str, str]]:
    """Return a folder with every output of a run or series and one other file, and the content of its files."""
    folder = folder_of(kind, path)
    for output in folder.outputs():
        if output.suffix:
            output.parent.mkdir(exist_ok=True)
            output.write_text("old")
        else:
            output.mkdir(parents=True)
            (output / "part").write_text("old")
    (path / "notes.txt").write_text("mine")
    return folder, contents(path)


def interrupt_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Raise KeyboardInterrupt after `number` renames, as if the process were killed."""
    rename, remaining = Path.rename, [number]

    def rename_or_interrupt(path: Path, target: Path) -> Path:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_or_interrupt)


FIRST_FILES = {"run": {"recipe.yaml", "environment.json", "data.json"}, "series": {"recipe.yaml", "series.json"}}
KILLS = [(kind, number) for kind in FIRST_FILES for number in range(len(folder_of(kind, Path()).outputs()) + 1)]


@pytest.mark.parametrize(("kind", "number"), KILLS)
def test_a_kill_during_the_move_to_previous_loses_nothing_of_the_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    folder, old = earlier_run(tmp_path / "run", kind)
    with monkeypatch.context() as patch:
        interrupt_rename(patch, number)
        with suppress(KeyboardInterrupt):
            take(folder)
    for _ in range(2):  # restarted, killed before it has written a model, and restarted
        take(folder)
        files = contents(folder.path)
        assert {name.removeprefix(".previous/"): text for name, text in files.items() if text in ("old", "mine")} == old
        assert set(files) - {f".previous/{name}" for name in old} == {"notes.txt", *FIRST_FILES[kind]}
    with suppress(KeyboardInterrupt), restore_previous_on_failure(folder, is_main_process=True):
        raise KeyboardInterrupt
    assert contents(folder.path) == old


@pytest.mark.parametrize(("kind", "number"), KILLS)
def test_an_error_during_the_move_to_previous_restores_the_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    folder, old = earlier_run(tmp_path / "run", kind)
    with suppress(KeyboardInterrupt), restore_previous_on_failure(folder, is_main_process=True):
        with monkeypatch.context() as patch:
            interrupt_rename(patch, number)
            take(folder)
        raise KeyboardInterrupt
    assert contents(folder.path) == old


def test_a_run_with_a_checkpoint_is_kept_when_resuming_fails(tmp_path: Path) -> None:
    folder, _ = earlier_run(tmp_path / "run")
    assert isinstance(folder, RunFolder)
    take(folder)
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    (folder.checkpoints / "step-000001" / COMPLETE_MARKER).write_text("")
    (folder.path / ".claimed").write_text("{}")  # a process was killed while it took ownership again
    before = contents(folder.path)
    with suppress(KeyboardInterrupt), restore_previous_on_failure(folder, is_main_process=True):
        raise KeyboardInterrupt
    assert contents(folder.path) == before


def test_the_folder_of_a_series_has_the_seeds_of_the_earlier_one_and_only_a_series_replaces_it(tmp_path: Path) -> None:
    series = RECIPE.model_copy(update={"output_dir": str(tmp_path), "seeds": [1, 7], "overwrite_output_dir": True})
    folder = output_folder(series)
    assert isinstance(folder, SeriesFolder)
    check_output_dir(folder, series)
    take(folder)
    folder = output_folder(series)
    assert isinstance(folder, SeriesFolder)
    assert folder.seeds == [1, 7, 2]
    check_output_dir(folder, series)
    with pytest.raises(
        TrainingError, match=r"contains an earlier series; name another .*resume the series .*replace it"
    ):
        check_output_dir(folder, series.model_copy(update={"overwrite_output_dir": False}))
    run = series.model_copy(update={"seeds": None})
    with pytest.raises(TrainingError, match="contains a series of runs, which a run does not replace or resume; name"):
        check_output_dir(output_folder(run), run)
    folder.results.write_text("{}")
    with pytest.raises(TrainingError, match=r"is not empty and is not a finetune series \(.*series.json is damaged"):
        check_output_dir(folder, series)
    folder.results.unlink()
    versions = dict.fromkeys(("started", "finetune", "python", "device", "mixed_precision"), "")
    first = {"train": SplitSummary(1, {}, 1, 1, 0)}
    take_ownership(RunFolder(tmp_path), run, versions | {"packages": {}, "processes": 1, "seed": 1}, first)
    with pytest.raises(TrainingError, match="contains a single run, which a series does not replace or resume; name"):
        check_output_dir(folder, series)


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
        check_output_dir(folder, overwrite)  # without ranks.json the recipe is only invalid
    write_json(folder.ranks, {"r": 4, "ranks": [3, 5], "importance": [1.0, 2.0], "steps": 20, "rows": 4})
    with pytest.raises(TrainingError, match="contains an earlier run"):
        check_output_dir(folder, recipe)
    check_output_dir(folder, overwrite)
    take_ownership(folder, overwrite, {}, {})
    assert not folder.ranks.exists()
    assert (tmp_path / ".previous" / "ranks.json").is_file()
