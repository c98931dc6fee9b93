"""The commands that read a recipe, and those that explain one: train, check, help, schema."""

from __future__ import annotations

import json

from finetune.cli.shared import Arguments, Commands, add_command, loading_libraries, with_recipe


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    parser = with_recipe(add_command(commands, "train", train, "run a recipe: train, score, analyze heads, report"))
    parser.add_argument("--dry-run", action="store_true", help="train one step, save, reload, and keep nothing")
    with_recipe(add_command(commands, "check", _check, "find the mistakes in a recipe"))
    topics = add_command(commands, "help", _help, "list the guides, or show one of them")
    topics.add_argument("topic", nargs="?", help="such as recipes or troubleshooting")
    add_command(commands, "schema", _schema, "print the recipe's JSON schema")


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

    recipe = check(args.recipe, args.overrides)
    print(f"{args.recipe} is valid. Output directory: {recipe.output_dir}")


def _help(args: Arguments) -> None:
    from finetune.help import show_help

    show_help(args.topic)


def _schema(args: Arguments) -> None:
    from finetune.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
