"""Completion scripts for shells: finetune/cli/completion.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from finetune.cli import command_parsers, main, parser
from finetune.cli.completion import completion_script, recipe_keys
from tests.recipe.test_guide_tables import _keys

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, whose completion is tried")


def completions(line: str, folder: Path) -> list[str]:
    """Return what bash would offer at the end of a line that begins with `finetune`."""
    words = line.replace(":", " : ").split(" ")  # bash splits words at colons too
    words = [word for word in words[:-1] if word] + words[-1:]
    script = completion_script("bash", command_parsers(parser()))
    (folder / "completion.sh").write_text(script)
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source completion.sh\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words) - 1}\n"
        f"COMP_LINE='{line}'\nCOMP_POINT={len(line)}\n_finetune\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@bash
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("finetune tr", ["train"]),
        ("finetune ", [*command_parsers(parser())]),
        ("finetune train recipe:t", ["toy", "toy_from_scratch", "trec"]),
        ("finetune train my.yaml training.learning_", ["training.learning_rate="]),
        ("finetune evaluate runs/toy evaluation.boot", ["evaluation.bootstrap_samples="]),
        ("finetune prune runs/toy --ke", ["--keep-within"]),
        ("finetune help troub", ["troubleshooting"]),
        ("finetune init x.csv --problem-type reg", ["regression"]),
        ("finetune completion z", ["zsh"]),
        ("finetune train nothing-like-this", []),
        ("finetune nothing ", []),
    ],
)
def test_bash_completes_a_line(line: str, expected: list[str], tmp_path: Path) -> None:
    assert completions(line, tmp_path) == expected


@bash
def test_bash_has_the_function_after_the_documented_line(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(completion_script("bash", command_parsers(parser())))
    program = f'eval "$(cat {script})"; complete -p finetune'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "complete -o bashdefault -o default -F _finetune finetune\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_has_every_command_and_key(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    commands = command_parsers(parser())
    assert len(commands) > 10
    assert [name for name in commands if f" {name}" not in script] == []
    assert [key for key in recipe_keys() if f"{key}=" not in script] == []
    assert [option for option in ("dry-run", "keep-within", "problem-type") if option not in script] == []


def test_every_key_of_the_recipe_is_completed() -> None:
    assert sorted(key.rpartition(".")[2] for key in recipe_keys()) == sorted(_keys())


def test_another_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["completion", "tcsh"])
    assert error.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
