"""The commands that put a trained model to use: predict, export, publish."""

from __future__ import annotations

from collections.abc import Callable

from finetune.cli.shared import Arguments, Commands

# Commands that run in one process only: with several, each would write the same files.
ONE_PROCESS: dict[Callable[[Arguments], None], str] = {}


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
