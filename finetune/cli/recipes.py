"""The commands that read a recipe, and those that explain one: train, check, help, schema."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.cli.shared import Arguments, Commands, add_command, loading_libraries, with_recipe
from finetune.errors import RecipeError


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    parser = with_recipe(add_command(commands, "train", train, "run a recipe: train, score, analyze heads, report"))
    parser.add_argument("--dry-run", action="store_true", help="train one step, save, reload, and keep nothing")
    with_recipe(add_command(commands, "check", _check, "find the mistakes in a recipe"))
    topics = add_command(commands, "help", _help, "list the guides, or show one of them")
    topics.add_argument("topic", nargs="?", help="such as recipes or troubleshooting")
    schema = add_command(commands, "schema", _schema, "print the JSON schema of recipes, for editors")
    schema.add_argument("--output", type=Path, help="the file to write instead, such as recipe.schema.json")


def train(args: Arguments) -> None:
    """Run a recipe."""
    from finetune.recipe import load_recipe

    # Before PyTorch is imported, so that mistakes are reported immediately.
    recipe = load_recipe(args.recipe, args.overrides)
    with loading_libraries():
        from finetune.pipeline.train import train as run_recipe
    run_recipe(recipe, dry_run=args.dry_run)


def _check(args: Arguments) -> None:
    from finetune.pipeline.check import check

    recipe, notes = check(args.recipe, args.overrides)
    print(f"{args.recipe} is valid. Output directory: {recipe.output_dir}")
    for note in notes:
        print(f"  {note}")


def _help(args: Arguments) -> None:
    from finetune.help import show_help

    show_help(args.topic)


def _schema(args: Arguments) -> None:
    from finetune.recipe.json_schema import recipe_schema
    from finetune.runs.atomic_files import write_text

    text = json.dumps(recipe_schema(), indent=2)
    if args.output is None:
        print(text)
        return
    if args.output.suffix != ".json":
        raise RecipeError(f"--output is '{args.output}'; the name of a JSON schema must end in .json")
    write_text(args.output, f"{text}\n")
    print(f"Schema: {args.output}. Editors use it for a recipe that begins with this line:")
    print(f"# yaml-language-server: $schema={args.output}")
