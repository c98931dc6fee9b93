"""Commands given inputs that nobody checked, in this process, and what is wrong with how they end.

Whatever comes in, a command ends with 0, or with 2 and one message; it leaves no traceback and nothing half-written.
A short form is a test (test_hostile_inputs.py), a long one `make soak` (soak_inputs.py).
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
from tests.hostile.runs import damage

ROWS = "sentence,label,other\na cat sat,x,1\na dog ran,y,0\nthe cat ran,x,1\nthe dog sat,y,0\n"


@dataclass
class Outcome:
    """How a command ended: its exit code, what it printed, and what is wrong with that, "" if nothing is."""

    code: object
    printed: str
    fault: str


def call(arguments: list[str], folder: Path) -> Outcome:
    """Run a command in this process and a folder, as the console would."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    out, err, code, fault = io.StringIO(), io.StringIO(), None, ""
    with chdir(folder), warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore")
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse: one message with the usage above it
            code = ended.code
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = f"traceback: {''.join(traceback.format_exception(error)[-6:])}"
    said = err.getvalue()
    messages = said.count("error: ") if said.startswith(("error: ", "usage: ")) else 0
    if not fault and code not in (0, 2):
        fault = f"exit code {code}"
    elif not fault and code == 2 and (messages < 1 or said.count("\nerror: ") or "Traceback" in said):
        fault = f"exit code 2 and not one message: {said!r}"
    elif not fault and code == 0 and "error: " in said:
        fault = f"exit code 0 and a message: {said!r}"
    return Outcome(code, out.getvalue() + said, fault)


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Return what is in a folder: every file's bytes, every link's target."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found


def changed(before: dict[str, bytes | str], after: dict[str, bytes | str]) -> str:
    """Return what differs between two snapshots, "" if nothing does."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"changed: {', '.join(names)}" if names else ""


class Inputs:
    """A folder to work in, with a recipe and its rows, and one finished run to damage."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self.recipe = folder / "recipe.yaml"
        self.codes: Counter[object] = Counter()
        self.clear()

    def clear(self) -> None:
        """Empty the folder but for the rows and a link that leads nowhere; the recipe is the right one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "rows.csv").write_text(ROWS)
        (self.folder / "loop").symlink_to("loop")
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))

    def _call(self, arguments: list[str]) -> Outcome:
        outcome = call(arguments, self.folder)
        self.codes[outcome.code] += 1
        return outcome

    def _leaves_all_as_it_is(self, arguments: list[str]) -> str:
        before = snapshot(self.folder)
        outcome = self._call(arguments)
        return outcome.fault or changed(before, snapshot(self.folder))

    def check(self, text: bytes) -> str:
        """Return what is wrong with how `check` takes a recipe."""
        self.recipe.write_bytes(text)
        return self._leaves_all_as_it_is(["check", str(self.recipe)])

    def override(self, changes: list[str]) -> str:
        """Return what is wrong with how `check` takes overrides."""
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))
        return self._leaves_all_as_it_is(["check", str(self.recipe), *changes])

    def settings(self, changes: list[str]) -> str:
        """Return what is wrong with a dry run by these settings."""
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))
        return self._leaves_all_as_it_is(["train", str(self.recipe), "--dry-run", *changes])

    def data(self, drawn: tuple[str, bytes, list[str]]) -> str:
        """Return what is wrong with a dry run on a data file."""
        name, content, changes = drawn
        for old in self.folder.glob("data.*"):
            old.unlink()
        (self.folder / name).write_bytes(content)
        self.recipe.write_text(yaml.safe_dump(BASE, sort_keys=False))
        files = [f"data.train_file={self.folder / name}", f"data.validation_file={self.folder / name}"]
        return self._leaves_all_as_it_is(["train", str(self.recipe), "--dry-run", *files, *changes])

    def damaged(self, drawn: tuple[str, int, list[str]]) -> str:
        """Return what is wrong with a command on a run with one damaged file, drawn by name, number and arguments."""
        name, number, command = drawn
        target = self.folder / "run"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.run, target)
        damage(target / name, random.Random(number))
        before = snapshot(self.folder)
        outcome = self._call([command[0], str(target), *command[1:]])
        if outcome.fault or outcome.code == 0:
            left = [path.name for pattern in (".*.tmp", ".*.old") for path in target.rglob(pattern)]
            return outcome.fault or (f"left {left}" if left else "")
        return changed(before, snapshot(self.folder))
