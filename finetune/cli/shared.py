"""What the commands share: common arguments, and the message while libraries are being loaded."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Arguments = argparse.Namespace
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, command: Callable[[Arguments], None], summary: str
) -> argparse.ArgumentParser:
    """Add a command, which `command` runs, and return its parser."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(command=command)
    return parser


def with_recipe(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of a command that reads a recipe."""
    parser.add_argument("recipe", type=Path, help="a YAML recipe, such as my.yaml, or a shipped one: recipe:toy")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="changes to the recipe")
    return parser


def delimiter(text: str) -> str:
    """Return the separator of a csv file that an option names."""
    from finetune.recipe.data_files import one_character

    try:
        return one_character(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def with_run(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of a command that reads a run folder."""
    parser.add_argument("run", type=Path, help="a run folder, such as runs/toy")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="changes to the run's recipe"
    )
    return parser


def split_overrides(args: Arguments) -> bool:
    """Split `args.run` into runs and overrides, which come in any order; return whether there is a run."""
    overrides = [part for part in args.run if _is_override(part)]
    args.run = [Path(part) for part in args.run if part not in overrides]
    args.overrides = overrides
    return bool(args.run)


def _is_override(argument: str) -> bool:
    """Return whether an argument is an override, and not an existing run folder with "=" in its name."""
    return "=" in argument and not os.path.lexists(argument)


@contextmanager
def loading_libraries(*, torch: bool = True, stderr: bool = False) -> Iterator[None]:
    """Print on the main process that libraries are being loaded, which takes seconds the first time.

    Args:
        torch: whether PyTorch is among them.
        stderr: whether this and all further progress are printed on standard error.
    """
    from rich.console import Console

    from finetune.imports import collector_paused
    from finetune.progress import show_progress_on, stage
    from finetune.signals import exit_immediately

    console = Console(quiet=os.environ.get("RANK", "0") != "0", highlight=False, stderr=stderr)
    show_progress_on(console)
    if "torch" in sys.modules or not torch:
        with collector_paused():
            yield
        return
    if not console.is_terminal:  # there, the first line of a stage is printed only after ten seconds
        console.print("Loading PyTorch and Transformers.")
    with stage("loading PyTorch and Transformers"), exit_immediately(), collector_paused(freeze=True):
        yield
