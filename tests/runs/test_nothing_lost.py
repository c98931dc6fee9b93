"""No finished run and no foreign file is lost: by a failing stage, a second process or an overwriting run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.cli import main
from finetune.errors import ModelError, TrainingError
from finetune.recipe.loader import load_recipe
from finetune.runs.locks import LOCK, locked_folder
from finetune.runs.ownership import check_output_dir
from finetune.runs.run_folder import RunFolder
from finetune.training.trainer import Trainer
from tests.support.finished_runs import SCRATCH, contents, recipe

AUTO, OVERWRITE = "checkpoint.resume_from_checkpoint=auto", "overwrite_output_dir=true"


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe(SCRATCH, training={"num_train_epochs": 1})))
    return path


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


FAILURES = [
    (ModelError("no gate fits here"), "The head analysis failed: no gate fits here"),
    (RuntimeError("shapes differ"), "The head analysis failed: RuntimeError: shapes differ"),
    (MemoryError(), "The head analysis failed: out of memory"),
]


@pytest.mark.parametrize(("error", "message"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES])
def test_a_failing_head_analysis_loses_no_scores(
    run: Path, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    before = contents(run)
    (run / "predictions.parquet").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.heads.analysis.analyze_heads", fail_with(error))
        assert main(["evaluate", str(run)]) == 0
    output = capsys.readouterr()
    assert message in output.out
    assert "Scores and report are written" in output.out
    after = contents(run)
    assert after["scores.json"] == before["scores.json"]
    assert after["predictions.parquet"] == before["predictions.parquet"]
    assert after["heads.json"] == before["heads.json"]  # the earlier analysis is not lost
    for name in ("report.html", "README.md"):
        assert message in after[name].decode()
        assert "the results below are from an earlier analysis" in after[name].decode()
    assert main(["heads", str(run), "head_importance.method=fisher"]) == 0
    assert "heads_failure.json" not in contents(run)
    assert "The head analysis failed" not in (run / "report.html").read_text()


def test_a_run_whose_head_analysis_fails_is_finished(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.heads.analysis.analyze_heads", fail_with(ModelError("no gate fits here")))
    run = tmp_path / "run"
    assert main(["train", str(small_recipe), f"output_dir={run}"]) == 0
    assert "The head analysis failed: no gate fits here" in capsys.readouterr().out
    assert {"scores.json", "predictions.parquet", "report.html", "heads_failure.json"} <= contents(run).keys()
    assert "heads.json" not in contents(run)
    assert "the results below" not in (run / "report.html").read_text()
    assert main(["train", str(small_recipe), f"output_dir={tmp_path / 'dry'}", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "the head analysis fails: no gate fits here; change head_importance, or set it to null" in printed.err
    assert "Dry run passed" not in printed.out


def test_a_dry_run_tries_every_method_on_a_few_rows(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    from finetune.heads.analysis import analyze_heads

    def analyze(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[2])
        return analyze_heads(*args, **kwargs)

    monkeypatch.setattr("finetune.heads.analysis.analyze_heads", analyze)
    assert main(["train", str(small_recipe), f"output_dir={tmp_path / 'dry'}", "--dry-run"]) == 0
    assert [section.methods() for section in calls] == [["gradient", "fisher"]]
    assert calls[0].max_samples <= 8
    assert "its heads analyzed on a few rows. Nothing was kept" in capsys.readouterr().out.replace("\n", " ")


# Folders with files that are not a run, as file name -> content.
OTHER_FOLDERS = {
    "three names": {"recipe.yaml": "a: 1\n", "environment.json": "{}", "data.json": "{}", "model/mine.txt": "mine"},
    "an empty claim": {".claimed": "", "README.md": "mine"},
    "a claim of another tool": {".claimed": "{}", "README.md": "mine"},
    "another tool's recipe": {"recipe.yaml": "model: bert\ndata: x\n", "environment.json": "{}", "data.json": "{}"},
    "a recipe alone": {"recipe.yaml": None, "README.md": "mine"},
    "a recipe beside other files": {"recipe.yaml": None, "environment.json": '{"name": "conda"}', "data.json": "[1]"},
    "no file of a run": {"notes.txt": "mine"},
    "a lock and a file": {LOCK: "{}", "notes.txt": "mine"},
}


@pytest.mark.parametrize("name", OTHER_FOLDERS)
@pytest.mark.parametrize("override", [OVERWRITE, AUTO])
def test_a_folder_with_other_files_is_not_a_run(small_recipe: Path, tmp_path: Path, name: str, override: str) -> None:
    folder = tmp_path / "other"
    for file, content in OTHER_FOLDERS[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(small_recipe.read_text() if content is None else content)
    before = contents(folder)
    loaded_recipe = load_recipe(small_recipe, [f"output_dir={folder}", override])
    with pytest.raises(TrainingError, match=r"other is not empty and is not a finetune run \(.+\); name another"):
        check_output_dir(RunFolder(folder), loaded_recipe)
    assert main(["train", str(small_recipe), f"output_dir={folder}", override]) == 2
    assert contents(folder) == before


@pytest.mark.parametrize("leftovers", [{}, {".claimed": ""}, {LOCK: "", ".claimed": ""}, {"..claimed.tmp": "{"}])
def test_files_of_a_killed_process_in_an_empty_folder_are_ignored(
    small_recipe: Path, tmp_path: Path, leftovers: dict[str, str]
) -> None:
    (tmp_path / "run").mkdir()
    for file, content in leftovers.items():
        (tmp_path / "run" / file).write_text(content)
    check_output_dir(RunFolder(tmp_path / "run"), load_recipe(small_recipe, [f"output_dir={tmp_path / 'run'}"]))


def test_a_run_is_recognized_by_the_content_of_its_files(run: Path, small_recipe: Path, tmp_path: Path) -> None:
    """A run is recognized even if its data have moved; it is replaced only if the user says so."""
    text = (run / "recipe.yaml").read_text()
    moved = yaml.safe_load(text)
    for split in ("train", "validation", "test"):
        moved["data"][f"{split}_rows"], moved["data"][f"{split}_file"] = None, f"/moved/{split}.csv"
    (run / "recipe.yaml").write_text(yaml.safe_dump(moved))
    folder = RunFolder(run)
    check_output_dir(folder, load_recipe(small_recipe, [f"output_dir={run}", OVERWRITE]))
    with pytest.raises(TrainingError, match="contains an earlier run; name another folder"):
        check_output_dir(folder, load_recipe(small_recipe, [f"output_dir={run}"]))
    (run / "recipe.yaml").write_text(text)
    source = [f"output_dir={run}", AUTO, "model.model_type=null", f"model.model_name_or_path={run / 'model'}"]
    content = yaml.safe_load(small_recipe.read_text()) | {"model": {"model_name_or_path": str(run / "model")}}
    small_recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(TrainingError, match=r"model\.model_name_or_path is inside output_dir"):
        check_output_dir(folder, load_recipe(small_recipe, source[:2]))


def fail_at(step: int) -> Callable[..., Any]:
    optimizer_step = Trainer.optimizer_step

    def failing(trainer: Trainer, *args: Any) -> Any:
        if trainer.state.step == step:
            raise TrainingError("the loss is not finite")
        return optimizer_step(trainer, *args)

    return failing


def test_the_old_run_is_kept_until_the_new_one_has_a_model(
    run: Path, small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "notes.txt").write_text("mine")
    earlier = contents(run)
    arguments = ["train", str(small_recipe), f"output_dir={run}", OVERWRITE, "seed=5", "head_importance=null"]
    saved = ["checkpoint.save_strategy=steps", "checkpoint.save_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", fail_at(1))
        assert main([*arguments, *saved]) == 2  # before the first checkpoint
    assert "the loss is not finite" in capsys.readouterr().err
    assert contents(run) == earlier
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", fail_at(3))
        assert main([*arguments, *saved]) == 2  # after a checkpoint, from which it can be resumed
    previous = {name.removeprefix(".previous/"): text for name, text in contents(run).items() if "/" in name}
    assert previous.items() >= {name: text for name, text in earlier.items() if name != "notes.txt"}.items()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["seed"] == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", fail_at(1))
        assert main([*arguments, *saved]) == 2  # the unfinished run is deleted and the old one restored
    assert contents(run) == earlier
    assert main(arguments) == 0
    later = contents(run)
    assert later["notes.txt"] == b"mine"
    assert not any(".previous" in name for name in later)
    assert json.loads(later["environment.json"])["seed"] == 5
    assert later["model/model.safetensors"] != earlier["model/model.safetensors"]


@pytest.mark.parametrize("command", ["train", "evaluate", "heads", "prune", "merge", "report"])
def test_a_folder_that_another_process_is_writing_is_not_changed(
    run: Path, small_recipe: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = {
        "train": ["train", str(small_recipe), f"output_dir={run}", OVERWRITE],
        "prune": ["prune", str(run), "--share", "0.5"],
    }.get(command, [command, str(run)])
    with locked_folder(run):
        before = contents(run)
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert f"{run} is being written by process " in message
        assert "wait until it ends, or name another folder" in message
        assert contents(run) == before
