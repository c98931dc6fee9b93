from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune import __version__
from finetune.cli import main

TOY = Path(__file__).parents[1] / "recipes" / "toy.yaml"


def test_check_says_that_a_recipe_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TOY), "seed=3"]) == 0
    assert f"{TOY} is right; the run will lie in" in capsys.readouterr().out


def test_a_mistake_ends_with_2_and_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "train"):
        assert main([command, str(TOY), "sed=3"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "did you mean 'seed'" in said.err


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

    monkeypatch.setattr("finetune.recipe.load_recipe", interrupted)
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
