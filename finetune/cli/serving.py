"""The commands that put a trained model to use: predict, export, publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.cli.shared import Arguments, Commands, add_command


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    _add_publish(commands)


def _add_publish(commands: Commands) -> None:
    parser = add_command(commands, "publish", _publish, "upload a finished run's model, card and scores to the hub")
    parser.add_argument("run", type=Path, help="a run folder, such as runs/toy")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository on the hub")
    parser.add_argument("--private", action="store_true", help="the repository must be private")
    parser.add_argument("--dry-run", action="store_true", help="list the files and show the card, without a network")
    parser.add_argument(
        "--include-texts", action="store_true", help="also publish texts of the rows: predictions, examples"
    )
    parser.add_argument(
        "--model",
        default="model",
        metavar="KIND",
        help="model (default); merged, from `finetune merge`; pruned or zeroed, from `finetune prune`",
    )
    parser.add_argument("--language", action="append", default=[], help="a language of the texts, such as en")
    parser.add_argument("--license", help="the license of the model, such as apache-2.0")


def _publish(args: Arguments) -> None:
    from finetune.pipeline.publish import Publication, print_files, publish

    publication = Publication(
        repository=args.repo,
        model=args.model,
        private=args.private,
        include_texts=args.include_texts,
        languages=tuple(args.language),
        license=args.license,
    )
    if args.dry_run:
        print_files(args.run, publication)
    else:
        print(f"Published: {publish(args.run, publication)}")


# Commands that run in one process only: with several, each would write the same files.
ONE_PROCESS: dict[Callable[[Arguments], None], str] = {_publish: "publish"}
