"""Run commands with arbitrary inputs in this process, and detect wrong exit codes, tracebacks and changed files.

For any input, a command must end with 0, or with 2 and one message, without a traceback and without unfinished files.
test_hostile_inputs.py is the short version, `make soak` (soak_inputs.py) the long one.
"""

from __future__ import annotations

import io
import random
import shutil
import traceback
import warnings
from collections import Counter
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import yaml
from accelerate.state import AcceleratorState, PartialState

from finetune.cli import main
from tests.hostile.recipes import BASE
from tests.hostile.runs import OTHER, damage

ROWS = "sentence,label,other\na cat sat,x,1\na dog ran,y,0\nthe cat ran,x,1\nthe dog sat,y,0\n"


@dataclass
class Outcome:
    """The exit code of a command, its output, and the fault in them ("" if there is none)."""

    code: object
    printed: str
    fault: str


def call(arguments: list[str], folder: Path) -> Outcome:
    """Run a command in this process, with `folder` as the working directory."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    out, err, code, fault = io.StringIO(), io.StringIO(), None, ""
    with chdir(folder), warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore")
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse: one message below the usage
            code = ended.code
        except BaseException as error:  # a panic of a Rust library is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = f"traceback: {''.join(traceback.format_exception(error)[-6:])}"
    errors = err.getvalue()
    messages = errors.count("error: ") if errors.startswith(("error: ", "usage: ")) else 0
    if not fault and code not in (0, 2):
        fault = f"exit code {code}"
    elif not fault and code == 2 and (messages < 1 or errors.count("\nerror: ") or "Traceback" in errors):
        fault = f"exit code 2 and not one message: {errors!r}"
    elif not fault and code == 0 and "error: " in errors:
        fault = f"exit code 0 and a message: {errors!r}"
    return Outcome(code, out.getvalue() + errors, fault)


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Return the content of a folder: the bytes of every file and the target of every link."""
    content: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        content[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return content


def changed(before: dict[str, bytes | str], after: dict[str, bytes | str]) -> str:
    """Return the differences between two snapshots, or ""."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"changed: {', '.join(names)}" if names else ""


class Inputs:
    """A working folder with a recipe and its rows, and a finished run to damage."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self.recipe = folder / "recipe.yaml"
        self.codes: Counter[object] = Counter()
        self.clear()

    def clear(self) -> None:
        """Reset the folder to a valid recipe, the rows and a link that points to itself."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "rows.csv").write_text(ROWS)
        (self.folder / "loop").symlink_to("loop")
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))

    def _call(self, arguments: list[str]) -> Outcome:
        outcome = call(arguments, self.folder)
        self.codes[outcome.code] += 1
        return outcome

    def _changes_nothing(self, arguments: list[str]) -> str:
        before = snapshot(self.folder)
        outcome = self._call(arguments)
        return outcome.fault or changed(before, snapshot(self.folder))

    def check(self, text: bytes) -> str:
        """Return the fault of `check` with a recipe, or ""."""
        self.recipe.write_bytes(text)
        return self._changes_nothing(["check", str(self.recipe)])

    def override(self, changes: list[str]) -> str:
        """Return the fault of `check` with overrides, or ""."""
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))
        return self._changes_nothing(["check", str(self.recipe), *changes])

    def settings(self, changes: list[str]) -> str:
        """Return the fault of a dry run with these settings, or ""."""
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))
        return self._changes_nothing(["train", str(self.recipe), "--dry-run", *changes])

    def data(self, drawn: tuple[str, bytes, list[str]]) -> str:
        """Return the fault of a dry run on a data file, or ""."""
        name, content, changes = drawn
        for old in self.folder.glob("data.*"):
            old.unlink()
        (self.folder / name).write_bytes(content)
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))
        files = [f"data.train_file={self.folder / name}", f"data.validation_file={self.folder / name}"]
        return self._changes_nothing(["train", str(self.recipe), "--dry-run", *files, *changes])

    def damaged(self, drawn: tuple[str, int, list[str]]) -> str:
        """Return the fault of a command on a run with one damaged file, or ""."""
        name, number, command = drawn
        target = self.folder / "run"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.run, target)
        damage(target / name, random.Random(number))
        before = snapshot(self.folder)
        arguments = [str(self.run) if part == OTHER else part for part in command[1:]]
        outcome = self._call([command[0], str(target), *arguments])
        if outcome.fault or outcome.code == 0:
            leftovers = [path.name for pattern in (".*.tmp", ".*.old") for path in target.rglob(pattern)]
            return outcome.fault or (f"left {leftovers}" if leftovers else "")
        return changed(before, snapshot(self.folder))
