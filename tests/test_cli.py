from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.cli.shared import loading_libraries
from finetune.version import __version__
from tests.hostile.runs import COMMANDS as HOSTILE_COMMANDS
from tests.pipeline.test_damaged_runs import COMMANDS as DAMAGED_COMMANDS
from tests.support import ROOT
from tests.support.command_line import commands_with

TOY = ROOT / "recipes" / "toy.yaml"


def test_check_reports_a_valid_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TOY), "seed=3"]) == 0
    assert f"{TOY} is valid. Output directory: " in capsys.readouterr().out


def test_a_process_ends_without_a_search_for_garbage(tmp_path: Path) -> None:
    program = (
        "import atexit, gc, sys\nfrom finetune.cli import main\n"
        "atexit.register(lambda: print('objects not searched:', gc.get_freeze_count()))\n"
        f"main(['check', {str(TOY)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout.rpartition(": ")[2]) > 10_000


def test_a_mistake_exits_with_2_and_one_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "train"):
        assert main([command, str(TOY), "sed=3"]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert "did you mean 'seed'" in output.err


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
def test_an_unusable_path_gives_one_error_message_in_every_command(
    path: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    commands = [
        ["check", path], ["train", path], ["train", path, "--dry-run"], ["evaluate", path], ["report", path],
        ["merge", path], ["merge", ".", "--output", path], ["heads", path], ["heads", ".", path],
        ["prune", path, "--share", "0.5"], ["prune", ".", "--share", "0.5", "--output", path],
        ["publish", path, "--repo", "me/a"], ["compare", path, "."], ["compare", ".", path],
        ["compare", ".", "--output", path], ["report", ".", "--compare", "--output", path],
        ["check", str(TOY), f"output_dir={json.dumps(path)}"],
        ["check", str(TOY), f"data.train_file={json.dumps(path)}"],
    ]  # fmt: skip
    assert {command[0] for command in commands} == commands_with("run") | commands_with("recipe")
    for command in commands:
        assert main(command) == 2, command
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("error: ") == 1
        assert reason in output.err or (r"\ud800" in output.err and "unpaired surrogate" in output.err)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_every_command_that_reads_a_run_is_tested_on_damaged_runs() -> None:
    names = commands_with("run")
    assert names >= {"compare", "evaluate", "heads", "merge", "prune", "report"}
    for table in (DAMAGED_COMMANDS.values(), HOSTILE_COMMANDS):
        assert {words[0] for words in table} == names


def test_check_rejects_the_output_folder_that_train_would_reject(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    assert main(["check", str(TOY), f"output_dir={tmp_path}"]) == 2
    assert f"error: output_dir {tmp_path} " in capsys.readouterr().err


def test_characters_that_a_terminal_cannot_show_are_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "caf\udce9\x1b.yaml"  # a latin-1 name as Python receives it from a terminal
    recipe.write_text(TOY.read_text())
    assert main(["check", str(recipe)]) == 0
    assert r"caf\udce9" in capsys.readouterr().out
    recipe.write_text("[1")
    assert main(["check", str(recipe)]) == 2
    assert r"caf\udce9\x1b.yaml" in capsys.readouterr().err


def test_only_one_process_per_machine_prints_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["check", str(TOY), "sed=3"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_folder_that_is_not_a_run_is_an_error(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert f"{tmp_path} is not a finished run" in capsys.readouterr().err


def test_an_interrupt_is_not_a_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.pipeline.check.load_recipe", interrupt)
    assert main(["check", str(TOY)]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"


def test_a_library_that_is_not_installed_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        def load_recipe(*_: object) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr("finetune.pipeline.check.load_recipe", load_recipe)

    fail("pydantic")
    assert main(["check", str(TOY)]) == 2
    expected = "error: this command needs pydantic, which is not installed; run `pip install finetune`\n"
    assert capsys.readouterr().err == expected
    fail("finetune.nothing")
    with pytest.raises(ModuleNotFoundError):
        main(["check", str(TOY)])


@pytest.mark.parametrize(
    ("is_loaded", "rank", "expected"),
    [(False, "0", "Loading PyTorch and Transformers.\n"), (False, "1", ""), (True, "0", "")],
)
def test_loading_the_libraries_is_announced_once_by_the_main_process(
    is_loaded: bool, rank: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    with monkeypatch.context() as patch:
        if not is_loaded:
            patch.delitem(sys.modules, "torch")
        with loading_libraries():
            assert capsys.readouterr().out == expected
    assert "torch" in sys.modules


def test_a_missing_run_is_an_error_before_libraries_are_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("finetune.cli.runs.loading_libraries", lambda: pytest.fail("libraries were loaded"))
    missing = str(tmp_path / "nowhere")
    for command in (["evaluate", missing], ["merge", missing], ["heads", missing], ["prune", missing, "--share", "1"]):
        assert main(command) == 2
        assert f"{missing} is not a finished run" in capsys.readouterr().err


def test_the_schema_is_printed_or_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert {"model", "data", "training", "peft"} <= json.loads(printed)["properties"].keys()
    for _ in range(2):  # the second time over the first
        assert main(["schema", "--output", "recipe.schema.json"]) == 0
        assert "\n# yaml-language-server: $schema=recipe.schema.json\n" in capsys.readouterr().out
        assert Path("recipe.schema.json").read_text() == printed
    assert main(["schema", "--output", "my.yaml"]) == 2
    assert "--output is 'my.yaml'; the name of a JSON schema must end in .json" in capsys.readouterr().err
    assert main(["schema", "--output", "nowhere/x.json"]) == 2
    assert "cannot write nowhere/x.json: No such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.schema.json"]


def test_a_reader_that_has_ended_is_no_error_and_a_full_disk_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["schema"], ["help"]):  # more and less than the buffer of standard output
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:  # noqa: PTH123
            patch.setattr("sys.stdout", stream)
            assert main(words) == 0
        assert capsys.readouterr().err == ""
        if Path("/dev/full").exists():  # Linux
            with Path("/dev/full").open("w", encoding="utf-8") as full, monkeypatch.context() as patch:
                patch.setattr("sys.stdout", full)
                assert main(words) == 2
            assert capsys.readouterr().err.startswith("error: cannot write standard output: No space left on device;")

    def broken(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("finetune.help.show_help", broken)
    with pytest.raises(BrokenPipeError):  # not that of standard output
        main(["help"])


@pytest.mark.parametrize(("command", "hint"), [("trian", "; did you mean 'train'?"), ("x" * 200, "")])
def test_an_unknown_command_is_one_message(command: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([command, "recipe.yaml"])
    assert error.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"finetune: error: there is no command '{command[:20]}")
    assert message.endswith(f", completion{hint}")
    assert len(message) < 300


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nothing"], ["train"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        message = capsys.readouterr().err
        assert "usage: finetune" in message
    assert message.endswith("finetune train: error: the following arguments are required: recipe\n")
    with pytest.raises(SystemExit) as error:
        main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
