from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.version import __version__
from tests.support import ROOT

TOY = ROOT / "recipes" / "toy.yaml"


def test_check_reports_a_valid_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TOY), "seed=3"]) == 0
    assert f"{TOY} is valid. Output directory: " in capsys.readouterr().out


def test_a_mistake_ends_with_2_and_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "train"):
        assert main([command, str(TOY), "sed=3"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "did you mean 'seed'" in said.err


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 300, "is too long for the file system"),
        ("~nosuchuser/x", "names the home folder of a user that does not exist"),
        ("a\0b", "contains a NUL character"),
        ("\ud800", "contains characters that no path can"),
        ("loop/run", "contains symbolic links that point at each other"),
    ],
)
def test_a_path_that_none_can_be_is_one_message_in_every_command(
    path: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    commands = [
        ["check", path], ["train", path], ["train", path, "--dry-run"], ["evaluate", path], ["report", path],
        ["merge", path], ["merge", ".", "--output", path], ["heads", path], ["heads", ".", path],
        ["prune", path, "--share", "0.5"], ["prune", ".", "--share", "0.5", "--output", path],
        ["check", str(TOY), f"output_dir={json.dumps(path)}"],
        ["check", str(TOY), f"data.train_file={json.dumps(path)}"],
    ]  # fmt: skip
    for command in commands:
        assert main(command) == 2, command
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("error: ") == 1
        assert reason in said.err or (r"\ud800" in said.err and "unpaired surrogate" in said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_check_refuses_the_output_folder_that_train_would_refuse(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    assert main(["check", str(TOY), f"output_dir={tmp_path}"]) == 2
    assert f"error: output_dir {tmp_path} " in capsys.readouterr().err


def test_what_a_terminal_cannot_show_is_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "caf\udce9\x1b.yaml"  # the name in latin-1, as a terminal hands it on
    recipe.write_text(TOY.read_text())
    assert main(["check", str(recipe)]) == 0
    assert r"caf\udce9" in capsys.readouterr().out
    recipe.write_text("[1")
    assert main(["check", str(recipe)]) == 2
    assert r"caf\udce9\x1b.yaml" in capsys.readouterr().err


def test_of_a_machines_processes_one_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["check", str(TOY), "sed=3"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_folder_that_is_no_run_is_named(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert f"{tmp_path} holds no" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.pipeline.check.load_recipe", interrupted)
    assert main(["check", str(TOY)]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert {"model", "data", "training", "peft"} <= json.loads(capsys.readouterr().out)["properties"].keys()


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nothing"], ["train"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: finetune" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
