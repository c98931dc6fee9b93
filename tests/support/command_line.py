"""The commands of the command line, read from its parser."""

from __future__ import annotations

import argparse

from finetune.cli import parser


def commands_with(argument: str) -> set[str]:
    """Return the names of the commands that have this argument."""
    (subparsers,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {
        name
        for name, command in subparsers.choices.items()
        if any(action.dest == argument for action in command._actions)
    }
