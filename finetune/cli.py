"""The console command `finetune`. Imports torch only in the commands that need it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune import __version__
from finetune.errors import EXIT_CODE, FinetuneError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for a mistake the user can repair, 130 when interrupted."""
    parser = _parser()
    asked, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(asked, "overrides") or any(part.startswith("-") for part in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes no more positional arguments after an option
        asked.overrides = [*asked.overrides, *rest]
    command: Callable[[argparse.Namespace], None] = asked.command
    try:
        command(asked)
    except FinetuneError as error:
        if int(os.environ.get("RANK", "0")) == 0:  # of several processes, one speaks
            print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


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
        again.add_argument("run", type=Path, help="a run folder, such as runs/toy")
        again.set_defaults(command=command)

    merge = commands.add_parser("merge", help="write a run's model as plain weights that stock transformers reads")
    merge.add_argument("run", type=Path, help="a run folder, such as runs/toy")
    merge.add_argument("--output", type=Path, help="the folder to write (default: RUN/merged)")
    merge.set_defaults(command=_merge)

    schema = commands.add_parser("schema", help="print the recipe's JSON schema")
    schema.set_defaults(command=_schema)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a YAML recipe, such as recipes/toy.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")


def _check(asked: argparse.Namespace) -> None:
    from finetune.recipe import load_recipe

    recipe = load_recipe(asked.recipe, asked.overrides)
    print(f"{asked.recipe} is right; the run will lie in {recipe.output_dir}")


def _train(asked: argparse.Namespace) -> None:
    from finetune.recipe import load_recipe

    recipe = load_recipe(asked.recipe, asked.overrides)  # before torch is imported: a mistake is told at once
    from finetune.run import train

    train(recipe, dry_run=asked.dry_run)


def _evaluate(asked: argparse.Namespace) -> None:
    from finetune.run import evaluate

    evaluate(asked.run)


def _report(asked: argparse.Namespace) -> None:
    from finetune.report import write_report
    from finetune.results import RunFolder

    folder = RunFolder(asked.run)
    write_report(folder)
    print(f"Report: {folder.report}")


def _merge(asked: argparse.Namespace) -> None:
    from finetune.run import merge

    output, difference = merge(asked.run, asked.output)
    print(f"Plain weights in {output}; the largest difference of a logit is {difference:.1g}")


def _schema(asked: argparse.Namespace) -> None:
    from finetune.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


if __name__ == "__main__":
    sys.exit(main())
