"""The console command `finetune`. Imports torch only in the commands that need it."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.errors import EXIT_CODE, DataError, FinetuneError, printable, shorten
from finetune.paths import path_problem
from finetune.signals import Interrupted, stop_immediately
from finetune.version import __version__

_GO_ON = "; to go on, start the same recipe with checkpoint.resume_from_checkpoint=auto"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for a mistake the user can repair, 130 or 143 when stopped by SIGINT or SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the name of a file need not be text that the terminal can show
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    asked, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(asked, "overrides") or any(part.startswith("-") for part in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes no more positional arguments after an option
        asked.overrides = [*asked.overrides, *rest]
    if asked.command is _heads:  # runs and overrides are positional alike, and any number of both
        asked.overrides = [part for part in asked.run if _is_override(part)]
        asked.run = [Path(part) for part in asked.run if part not in asked.overrides]
        if not asked.run:
            parser.error("the following arguments are required: run")
    command: Callable[[argparse.Namespace], None] = asked.command
    speaks = int(os.environ.get("LOCAL_RANK", "0")) == 0  # of a machine's processes, one
    try:
        _check_processes(asked)
        _check_paths(asked)
        with stop_immediately():
            command(asked)
    except FinetuneError as error:
        if speaks:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_CODE
    except (Interrupted, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        again = command is _train and not asked.dry_run
        if speaks:
            print(f"{stopped}{_GO_ON if again else ''}", file=sys.stderr)
        return stopped.exit_code
    return 0


def _is_override(part: str) -> bool:
    """Return whether an argument changes the recipe; a run folder whose name holds "=" is one that is there."""
    return "=" in part and not os.path.lexists(part)


def _check_processes(asked: argparse.Namespace) -> None:
    """Raise DataError where several processes were started for what each would do, and write, on its own."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    name = {_merge: "merge", _report: "report", _prune: "prune"}.get(asked.command)
    if asked.command is _heads and len(asked.run) > 1:
        name = "heads, for more than one run,"
    if count > 1 and name is not None:
        raise DataError(f"{name} works in one process, and the launcher started {count}; call it without a launcher")


def _check_paths(asked: argparse.Namespace) -> None:
    """Raise DataError for an argument that can be no path, before anything looks there."""
    for name, value in vars(asked).items():
        for path in value if isinstance(value, list) else [value]:
            fault = path_problem(path) if isinstance(path, Path) else None
            if fault is not None:
                raise DataError(f"{name} '{shorten(str(path), 120)}' {fault}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("finetune", description=(__doc__ or "").partition(".")[0])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="run a recipe: train, score, analyse heads, report")
    _add_recipe(train)
    train.add_argument("--dry-run", action="store_true", help="load all, train one step, save, reload, keep nothing")
    train.set_defaults(command=_train)

    check = commands.add_parser("check", help="say what is wrong with a recipe")
    _add_recipe(check)
    check.set_defaults(command=_check)

    for name, command, help_text in (
        ("evaluate", _evaluate, "score a finished run again from its folder: metrics, head importance, report"),
        ("report", _report, "write a finished run's report again"),
    ):
        again = commands.add_parser(name, help=help_text)
        _add_run(again)
        again.set_defaults(command=command)

    merge = commands.add_parser("merge", help="write a run's model as plain weights that stock transformers reads")
    _add_run(merge)
    merge.add_argument("--output", type=Path, help="the folder to write (default: RUN/merged)")
    merge.set_defaults(command=_merge)

    heads = commands.add_parser("heads", help="analyze a finished run's heads again; several runs: do they agree?")
    heads.add_argument(
        "run",
        nargs="+",
        metavar="run | section.key=value",
        help="run folders, such as runs/toy, and changes to the recipe",
    )
    heads.set_defaults(command=_heads)

    prune = commands.add_parser("prune", help="cut heads out of a finished run's model, heal it, compare")
    _add_run(prune)
    how = prune.add_mutually_exclusive_group(required=True)
    how.add_argument("--share", type=float, metavar="S", help="of the heads, 0 to 1")
    how.add_argument("--keep-within", type=float, metavar="D", help="as many as keep the validation score this near")
    how.add_argument("--heads", type=_named_heads, metavar="L.H,...", help="these, such as 0.3,2.7")
    prune.add_argument("--method", help="the ranking (default: the run's own)")
    prune.add_argument("--heal", type=int, default=0, metavar="EPOCHS", help="train on after the cut (default: 0)")
    prune.add_argument("--output", type=Path, help="the folder to write (default: RUN/pruned)")
    prune.set_defaults(command=_prune)

    help_ = commands.add_parser("help", help="list the guides, or show one of them")
    help_.add_argument("topic", nargs="?", help="such as recipes or troubleshooting")
    help_.set_defaults(command=_help)

    schema = commands.add_parser("schema", help="print the recipe's JSON schema")
    schema.set_defaults(command=_schema)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, such as runs/toy")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run's recipe")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a YAML recipe, such as recipes/toy.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")


def _check(asked: argparse.Namespace) -> None:
    from finetune.recipe import load_recipe
    from finetune.runs.ownership import check_output_dir
    from finetune.runs.run_folder import RunFolder

    recipe = load_recipe(asked.recipe, asked.overrides)
    check_output_dir(RunFolder(Path(recipe.output_dir)), recipe)
    print(f"{asked.recipe} is valid. Output directory: {recipe.output_dir}")


def _train(asked: argparse.Namespace) -> None:
    from finetune.recipe import load_recipe

    recipe = load_recipe(asked.recipe, asked.overrides)  # before torch is imported: a mistake is told at once
    from finetune.pipeline.train import train

    train(recipe, dry_run=asked.dry_run)


def _evaluate(asked: argparse.Namespace) -> None:
    from finetune.pipeline.evaluate import evaluate

    evaluate(asked.run, asked.overrides)


def _report(asked: argparse.Namespace) -> None:
    from finetune.report import write_report
    from finetune.runs.locks import locked_folder
    from finetune.runs.run_files import existing_run

    folder = existing_run(asked.run)
    with locked_folder(folder.path):
        write_report(folder, asked.overrides)
    print(f"Report: {folder.report}")


def _merge(asked: argparse.Namespace) -> None:
    from finetune.pipeline.merge import merge

    output, difference = merge(asked.run, asked.output, asked.overrides)
    print(f"Plain weights in {output}; the largest difference of a logit is {difference:.1g}")


def _named_heads(text: str) -> list[tuple[int, int]]:
    """Return "0.3,2.7" as [(0, 3), (2, 7)]."""
    try:
        return [(int(layer), int(head)) for layer, head in (part.split(".") for part in text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of heads; write layer.head, such as 0.3,2.7") from error


def _heads(asked: argparse.Namespace) -> None:
    from finetune.pipeline.analyze_heads import check_runs, compare_runs, study_run

    analyze = len(asked.run) == 1 or bool(asked.overrides)
    check_runs(asked.run, asked.overrides, analyze=analyze)
    for run in asked.run if analyze else []:
        study_run(run, asked.overrides)
    if len(asked.run) > 1:
        compare_runs(asked.run)


def _prune(asked: argparse.Namespace) -> None:
    if asked.share is not None and not 0 < asked.share < 1:
        raise DataError(f"--share is {asked.share:g}; it is a share of the heads, above 0 and below 1")
    if asked.keep_within is not None and not 0 <= asked.keep_within < math.inf:
        raise DataError(f"--keep-within is {asked.keep_within:g}; it is a distance of scores, 0 or more")
    if asked.heal < 0:
        raise DataError(f"--heal is {asked.heal}; it counts epochs, 0 or more")
    from finetune.pipeline.prune import Choice, prune

    choice = Choice(asked.share, asked.keep_within, asked.heads)
    prune(
        asked.run,
        choice,
        method=asked.method,
        heal_epochs=asked.heal,
        output=asked.output,
        overrides=asked.overrides,
    )


def _help(asked: argparse.Namespace) -> None:
    from finetune.help import show_help

    show_help(asked.topic)


def _schema(asked: argparse.Namespace) -> None:
    from finetune.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


if __name__ == "__main__":
    sys.exit(main())
