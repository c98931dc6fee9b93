"""The commands that study or change finished runs: evaluate, report, compare, merge, heads, prune."""

from __future__ import annotations

import argparse
from pathlib import Path

from finetune.cli.shared import Arguments, Commands, add_command, loading_libraries, with_run
from finetune.errors import DataError
from finetune.runs.pruned_files import has_pruned_parts


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    with_run(
        add_command(commands, "evaluate", _evaluate, "score a finished run again: metrics, head importance, report")
    )
    summary = "write a finished run's report again, or with --compare a page that compares several runs"
    parser = _with_runs(add_command(commands, "report", report, summary), " | section.key=value")
    parser.add_argument("--compare", action="store_true", help="compare runs or series with the first one")
    parser.add_argument("--output", type=Path, help="with --compare: the page to write (default: comparison.html)")

    summary = "compare finished runs or series with the first one, on the same rows"
    parser = _with_runs(add_command(commands, "compare", compare, summary))
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="a new folder for the page, the results as JSON and the changed rows",
    )

    merge = with_run(
        add_command(commands, "merge", _merge, "save a run's model as plain weights that stock transformers loads")
    )
    merge.add_argument("--output", type=Path, help="the folder to write (default: RUN/merged)")

    summary = "analyze the heads of finished runs again; with several runs, compare their rankings"
    _with_runs(add_command(commands, "heads", heads, summary), " | section.key=value")
    _add_prune(commands)


def _with_runs(parser: argparse.ArgumentParser, overrides: str = "") -> argparse.ArgumentParser:
    """Add the argument of a command that reads several runs; `overrides` is how the usage shows changes to recipes."""
    changes = ", and changes to their recipes" if overrides else ""
    parser.add_argument("run", nargs="+", metavar=f"run{overrides}", help=f"run folders, such as runs/toy{changes}")
    return parser


def _add_prune(commands: Commands) -> None:
    summary = "make a finished run's model faster by removing heads and neurons, and compare before and after"
    prune = with_run(add_command(commands, "prune", _prune, summary))
    choice = prune.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--speedup",
        type=float,
        metavar="S",
        help="prune heads and neurons until the model is S times as fast, such as 2",
    )
    choice.add_argument(
        "--keep-within",
        type=float,
        metavar="D",
        help="prune to the fastest model whose validation score stays within D of the full model's, such as 0.01",
    )
    choice.add_argument("--share", type=float, metavar="S", help="prune this share of all heads, between 0 and 1")
    choice.add_argument("--heads", type=_head_list, metavar="L.H,...", help="prune these heads, such as 0.3,2.7")
    prune.add_argument("--heads-only", action="store_true", help="with --speedup or --keep-within: keep all neurons")
    prune.add_argument(
        "--method", help="with --share: the ranking to prune from (default: the leading one of the run's analysis)"
    )
    prune.add_argument(
        "--heal", type=int, default=0, metavar="EPOCHS", help="epochs of recovery fine-tuning afterwards (default: 0)"
    )
    prune.add_argument(
        "--no-control",
        action="store_true",
        help="with --heal: do not train the unpruned model for the same steps, which shows what training alone gains",
    )
    prune.add_argument("--output", type=Path, help="the folder to write (default: RUN/pruned)")


def _evaluate(args: Arguments) -> None:
    with loading_libraries():
        from finetune.pipeline.evaluate import evaluate
    evaluate(args.run, args.overrides)


def report(args: Arguments) -> None:
    """Write the report of a run, or the page that compares several."""
    if args.compare:
        _check_no_overrides(args, "report --compare")
        with loading_libraries(torch=False):
            from finetune.pipeline.compare import write_comparison_page
        print(f"Comparison: {write_comparison_page(args.run, args.output)}")
        return
    if args.output is not None or len(args.run) > 1:
        raise DataError("report writes one run's report into its folder; several runs and --output need --compare")
    from finetune.pipeline.report import report

    print(f"Report: {report(args.run[0], args.overrides)}")


def compare(args: Arguments) -> None:
    """Compare runs or series with the first one."""
    _check_no_overrides(args, "compare")
    with loading_libraries(torch=False):
        from finetune.pipeline.compare import compare
    compare(args.run, output=args.output)


def _check_no_overrides(args: Arguments, command: str) -> None:
    """Raise DataError for a change to a recipe, which a comparison has no use for."""
    if args.overrides:
        raise DataError(f"{command} reads finished runs as they are, and got {args.overrides[0]}; name only folders")


def _merge(args: Arguments) -> None:
    with loading_libraries():
        from finetune.pipeline.merge import merge
    output, difference = merge(args.run, args.overrides, output=args.output)
    difference_text = f"largest difference of a logit: {difference:.1g}"
    if has_pruned_parts(output):
        print(f"Merged weights saved in {output}; {difference_text}. Only finetune opens them, as the base was pruned.")
    else:
        print(f"Plain weights saved in {output}; {difference_text}")


def heads(args: Arguments) -> None:
    """Analyze the heads of each run, and compare the rankings of several."""
    with loading_libraries():
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

    choice = HeadChoice(
        speedup=args.speedup,
        keep_within=args.keep_within,
        share=args.share,
        heads=args.heads,
        method=args.method,
        heads_only=args.heads_only,
    )
    check_choice(choice)
    check_epochs(args.heal, control=not args.no_control)
    with loading_libraries():
        from finetune.pipeline.prune import prune
    prune(args.run, args.overrides, heal_epochs=args.heal, control=not args.no_control, output=args.output, **choice)


# Commands that run in one process only: with several, each would write the same files.
ONE_PROCESS = {_merge: "merge", report: "report", compare: "compare", _prune: "prune"}
# Commands with several runs, and changes to their recipes between them.
SEVERAL_RUNS = (heads, report, compare)
FOR_SERIES = (report, compare)  # commands that also take the folder of a series


def _head_list(text: str) -> list[tuple[int, int]]:
    """Return "0.3,2.7" as [(0, 3), (2, 7)]."""
    try:
        return [(int(layer), int(head)) for layer, head in (part.split(".") for part in text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of heads; write layer.head, such as 0.3,2.7"
        ) from error
