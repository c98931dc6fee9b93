"""The command line. Imports PyTorch only in the commands that need it."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import EXIT_CODE, DataError, FinetuneError, printable, shorten
from finetune.paths import path_problem
from finetune.signals import Interrupted, stop_immediately
from finetune.version import __version__

Arguments = argparse.Namespace
_HOW_TO_RESUME = "; to resume, start the same recipe with checkpoint.resume_from_checkpoint=auto"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for an error that the user can fix, 130 or 143 after SIGINT or SIGTERM."""
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
    except FinetuneError as error:
        if is_local_main_process:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_CODE
    except (Interrupted, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        can_resume = args.command is _train and not args.dry_run
        if is_local_main_process:
            print(f"{stopped}{_HOW_TO_RESUME if can_resume else ''}", file=sys.stderr)
        return stopped.exit_code
    return 0


def _train(args: Arguments) -> None:
    from finetune.recipe import load_recipe

    recipe = load_recipe(
        args.recipe, args.overrides
    )  # before PyTorch is imported, so that mistakes are reported immediately
    with _loading_libraries():
        from finetune.pipeline.train import train
    train(recipe, dry_run=args.dry_run)


def _check(args: Arguments) -> None:
    from finetune.pipeline.check import check

    recipe = check(args.recipe, args.overrides)
    print(f"{args.recipe} is valid. Output directory: {recipe.output_dir}")


def _help(args: Arguments) -> None:
    from finetune.help import show_help

    show_help(args.topic)


def _schema(args: Arguments) -> None:
    from finetune.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


def _evaluate(args: Arguments) -> None:
    with _loading_libraries():
        from finetune.pipeline.evaluate import evaluate
    evaluate(args.run, args.overrides)


def _report(args: Arguments) -> None:
    from finetune.pipeline.report import report

    print(f"Report: {report(args.run, args.overrides)}")


def _merge(args: Arguments) -> None:
    with _loading_libraries():
        from finetune.pipeline.merge import merge
    output, difference = merge(args.run, args.overrides, output=args.output)
    print(f"Plain weights saved in {output}; largest difference of a logit: {difference:.1g}")


def _heads(args: Arguments) -> None:
    with _loading_libraries():
        from finetune.pipeline.analyze_heads import analyze_heads
        from finetune.pipeline.compare_heads import check_runs, compare_heads
    analyze = len(args.run) == 1 or bool(args.overrides)
    check_runs(args.run, args.overrides, analyze=analyze)
    for run in args.run if analyze else []:
        analyze_heads(run, args.overrides)
    if len(args.run) > 1:
        compare_heads(args.run)


def _prune(args: Arguments) -> None:
    from finetune.pipeline.head_choice import HeadChoice, check_choice, check_epochs

    choice = HeadChoice(share=args.share, keep_within=args.keep_within, heads=args.heads, method=args.method)
    check_choice(choice)
    check_epochs(args.heal)
    with _loading_libraries():
        from finetune.pipeline.prune import prune
    prune(args.run, args.overrides, heal_epochs=args.heal, output=args.output, **choice)


# Commands that run in one process only: with several, each would write the same files.
_ONE_PROCESS = {_merge: "merge", _report: "report", _prune: "prune"}


@contextmanager
def _loading_libraries() -> Iterator[None]:
    """Print on the main process that libraries are being loaded, which takes seconds the first time."""
    from rich.console import Console

    from finetune.progress import show_progress_on, stage

    console = Console(quiet=os.environ.get("RANK", "0") != "0", highlight=False)
    show_progress_on(console)
    if "torch" in sys.modules:
        yield
        return
    if not console.is_terminal:  # there, the first line of a stage is printed only after ten seconds
        console.print("Loading PyTorch and Transformers.")
    with stage("loading PyTorch and Transformers"):
        yield


def _parse(arguments: Sequence[str] | None) -> Arguments:
    """Return the parsed arguments; overrides can come before, between and after options."""
    parser = _parser()
    args, unparsed = parser.parse_known_args(arguments)
    if unparsed and (not hasattr(args, "overrides") or any(part.startswith("-") for part in unparsed)):
        parser.error(f"unrecognized arguments: {' '.join(unparsed)}")
    if unparsed:  # overrides after an option, where argparse accepts no positional arguments
        args.overrides = [*args.overrides, *unparsed]
    if args.command is _heads:  # any number of runs and overrides, in any order
        overrides = [part for part in args.run if _is_override(part)]
        args.run = [Path(part) for part in args.run if part not in overrides]
        args.overrides = overrides
        if not args.run:
            parser.error("the following arguments are required: run")
    return args


def _is_override(argument: str) -> bool:
    """Return whether an argument is an override, and not an existing run folder with "=" in its name."""
    return "=" in argument and not os.path.lexists(argument)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `command` is the function that runs the chosen one."""
    parser = argparse.ArgumentParser("finetune", description="Fine-tune classifiers and analyze their attention heads.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[Arguments], None], summary: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=summary)
        subparser.set_defaults(command=command)
        return subparser

    train = _with_recipe(add("train", _train, "run a recipe: train, score, analyze heads, report"))
    train.add_argument("--dry-run", action="store_true", help="train one step, save, reload, and keep nothing")
    _with_recipe(add("check", _check, "find the mistakes in a recipe"))
    _with_run(add("evaluate", _evaluate, "score a finished run again: metrics, head importance, report"))
    _with_run(add("report", _report, "write a finished run's report again"))

    merge = _with_run(add("merge", _merge, "save a run's model as plain weights that stock transformers loads"))
    merge.add_argument("--output", type=Path, help="the folder to write (default: RUN/merged)")

    heads = add("heads", _heads, "analyze the heads of finished runs again; with several runs, compare their rankings")
    heads.add_argument(
        "run",
        nargs="+",
        metavar="run | section.key=value",
        help="run folders, such as runs/toy, and changes to their recipes",
    )

    prune = _with_run(add("prune", _prune, "remove heads from a finished run's model, and compare before and after"))
    choice = prune.add_mutually_exclusive_group(required=True)
    choice.add_argument("--share", type=float, metavar="S", help="prune this share of all heads, between 0 and 1")
    choice.add_argument(
        "--keep-within",
        type=float,
        metavar="D",
        help="prune as many heads as keep the validation score within D of the full model's",
    )
    choice.add_argument("--heads", type=_head_list, metavar="L.H,...", help="prune these heads, such as 0.3,2.7")
    prune.add_argument("--method", help="the ranking to prune from (default: the leading one of the run's analysis)")
    prune.add_argument(
        "--heal", type=int, default=0, metavar="EPOCHS", help="epochs of recovery fine-tuning afterwards (default: 0)"
    )
    prune.add_argument("--output", type=Path, help="the folder to write (default: RUN/pruned)")

    topics = add("help", _help, "list the guides, or show one of them")
    topics.add_argument("topic", nargs="?", help="such as recipes or troubleshooting")
    add("schema", _schema, "print the recipe's JSON schema")
    return parser


def _with_recipe(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of a command that reads a recipe."""
    parser.add_argument("recipe", type=Path, help="a YAML recipe, such as recipes/toy.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    return parser


def _with_run(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of a command that reads a run folder."""
    parser.add_argument("run", type=Path, help="a run folder, such as runs/toy")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the run's recipe")
    return parser


def _head_list(text: str) -> list[tuple[int, int]]:
    """Return "0.3,2.7" as [(0, 3), (2, 7)]."""
    try:
        return [(int(layer), int(head)) for layer, head in (part.split(".") for part in text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of heads; write layer.head, such as 0.3,2.7"
        ) from error


def _check_process_count(args: Arguments) -> None:
    """Raise DataError if several processes were launched for a command that runs in one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    command = _ONE_PROCESS.get(args.command)
    if args.command is _heads and len(args.run) > 1:
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

        for run in args.run if isinstance(args.run, list) else [args.run]:
            existing_run(run)


if __name__ == "__main__":
    sys.exit(main())
