"""The commands that study or change a finished run: evaluate, report, merge, heads, prune."""

from __future__ import annotations

import argparse
from pathlib import Path

from finetune.cli.shared import Arguments, Commands, add_command, loading_libraries, with_run


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    with_run(
        add_command(commands, "evaluate", _evaluate, "score a finished run again: metrics, head importance, report")
    )
    with_run(add_command(commands, "report", _report, "write a finished run's report again"))

    merge = with_run(
        add_command(commands, "merge", _merge, "save a run's model as plain weights that stock transformers loads")
    )
    merge.add_argument("--output", type=Path, help="the folder to write (default: RUN/merged)")

    summary = "analyze the heads of finished runs again; with several runs, compare their rankings"
    add_command(commands, "heads", heads, summary).add_argument(
        "run",
        nargs="+",
        metavar="run | section.key=value",
        help="run folders, such as runs/toy, and changes to their recipes",
    )
    _add_prune(commands)


def _add_prune(commands: Commands) -> None:
    prune = with_run(
        add_command(commands, "prune", _prune, "remove heads from a finished run's model, and compare before and after")
    )
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


def _evaluate(args: Arguments) -> None:
    with loading_libraries():
        from finetune.pipeline.evaluate import evaluate
    evaluate(args.run, args.overrides)


def _report(args: Arguments) -> None:
    from finetune.pipeline.report import report

    print(f"Report: {report(args.run, args.overrides)}")


def _merge(args: Arguments) -> None:
    with loading_libraries():
        from finetune.pipeline.merge import merge
    output, difference = merge(args.run, args.overrides, output=args.output)
    print(f"Plain weights saved in {output}; largest difference of a logit: {difference:.1g}")


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

    choice = HeadChoice(share=args.share, keep_within=args.keep_within, heads=args.heads, method=args.method)
    check_choice(choice)
    check_epochs(args.heal)
    with loading_libraries():
        from finetune.pipeline.prune import prune
    prune(args.run, args.overrides, heal_epochs=args.heal, output=args.output, **choice)


# Commands that run in one process only: with several, each would write the same files.
ONE_PROCESS = {_merge: "merge", _report: "report", _prune: "prune"}

FOR_SERIES = (_report,)  # commands that also take the folder of a series


def _head_list(text: str) -> list[tuple[int, int]]:
    """Return "0.3,2.7" as [(0, 3), (2, 7)]."""
    try:
        return [(int(layer), int(head)) for layer, head in (part.split(".") for part in text.split(","))]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of heads; write layer.head, such as 0.3,2.7"
        ) from error
