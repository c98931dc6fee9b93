"""The command line. Imports PyTorch only in the commands that need it."""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.cli import completion, recipes, runs, serving
from finetune.cli.shared import Arguments, split_overrides
from finetune.errors import EXIT_CODE, DataError, FinetuneError, did_you_mean, printable, shorten
from finetune.paths import path_problem
from finetune.signals import Interrupted, stop_immediately
from finetune.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for an error that the user can fix, 130 or 143 after SIGINT or SIGTERM."""
    atexit.register(gc.freeze)  # otherwise Python ends with a search for garbage in all libraries, for over a second
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may have characters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    args = _parse(arguments)
    is_local_main_process = int(os.environ.get("LOCAL_RANK", "0")) == 0
    try:
        _check_process_count(args)
        _check_paths(args)
        _check_runs_exist(args)
        with stop_immediately():
            args.command(args)
            print(end="", flush=True)
    except OSError:
        problem = _standard_output_problem()
        if problem is None:
            raise
        if not isinstance(problem, BrokenPipeError):  # a reader that has ended, as `head` does, is no error
            reason = problem.strerror or problem
            print(f"error: cannot write standard output: {reason}; free disk space, and start again", file=sys.stderr)
            return EXIT_CODE
    except FinetuneError as error:
        if is_local_main_process:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_CODE
    except ModuleNotFoundError as error:  # as in an installation that only serves exported models
        if error.name is None or error.name.partition(".")[0] == "finetune":
            raise
        print(
            f"error: this command needs {error.name}, which is not installed; run `pip install finetune`",
            file=sys.stderr,
        )
        return EXIT_CODE
    except (Interrupted, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        if is_local_main_process:
            print(f"{stopped}{_how_to_resume(args)}", file=sys.stderr)
        return stopped.exit_code
    return 0


def _how_to_resume(args: Arguments) -> str:
    """Return how a stopped command is resumed, "" if it cannot be."""
    if args.command is recipes.sweep:
        return "; to resume, start the same command again, which repeats no finished trial"
    if args.command is recipes.train and not args.dry_run:
        return "; to resume, start the same recipe with checkpoint.resume_from_checkpoint=auto"
    return ""


def _standard_output_problem() -> OSError | None:
    """Return why standard output cannot be written, or None if it can; after an error it is discarded."""
    from finetune.pipeline.prediction_output import discard_standard_output

    try:
        print(flush=True)  # fails again only there
    except OSError as error:
        discard_standard_output()
        return error
    return None


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `command` is the function that runs the chosen one."""
    root = argparse.ArgumentParser("finetune", description="Fine-tune classifiers and analyze their attention heads.")
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for group in (recipes, runs, serving, completion):
        group.add_commands(commands)
    return root


def command_parsers(root: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command by its name."""
    (commands,) = (action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _parse(arguments: Sequence[str] | None) -> Arguments:
    """Return the parsed arguments; overrides can come before, between and after options."""
    root = parser()
    words = sys.argv[1:] if arguments is None else arguments
    commands = command_parsers(root)
    if words and not words[0].startswith("-") and words[0] not in commands:
        hint = did_you_mean(words[0], commands)
        root.error(f"there is no command '{shorten(words[0], 80)}'; commands are {', '.join(commands)}{hint}")
    args, unparsed = root.parse_known_args(words)
    several_runs = getattr(args, "command", None) in runs.SEVERAL_RUNS
    accepted = several_runs or hasattr(args, "overrides")
    if unparsed and (not accepted or any(part.startswith("-") for part in unparsed)):
        root.error(f"unrecognized arguments: {' '.join(unparsed)}")
    if unparsed:  # runs or overrides after an option, where argparse accepts no positional arguments
        name = "run" if several_runs else "overrides"
        setattr(args, name, [*getattr(args, name), *unparsed])
    if several_runs and not split_overrides(args):
        root.error("the following arguments are required: run")
    return args


def _check_process_count(args: Arguments) -> None:
    """Raise DataError if several processes were launched for a command that runs in one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    command = runs.ONE_PROCESS.get(args.command) or serving.ONE_PROCESS.get(args.command)
    if args.command is runs.heads and len(args.run) > 1:
        command = "heads, with more than one run,"
    if count > 1 and command is not None:
        raise DataError(f"{command} runs in one process, and the launcher started {count}; run it without a launcher")


def _check_paths(args: Arguments) -> None:
    """Raise DataError for an argument that cannot be a path on this system."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            problem = path_problem(path) if isinstance(path, Path) else None
            if problem is not None:
                raise DataError(f"{name} '{shorten(str(path), 120)}' {problem}")


def _check_runs_exist(args: Arguments) -> None:
    """Raise DataError for a folder that is not a run, before PyTorch is imported."""
    if hasattr(args, "run"):
        from finetune.runs.run_files import existing_run
        from finetune.runs.series import is_series
        from finetune.runs.sweep_results import is_sweep

        for run in args.run if isinstance(args.run, list) else [args.run]:
            is_page = args.command is runs.report and not args.compare and is_sweep(run)
            if not (args.command in runs.FOR_SERIES and is_series(run)) and not is_page:
                existing_run(run)
