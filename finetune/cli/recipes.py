"""The commands that read a recipe or a sweep, and those that explain one: train, sweep, check, help, schema."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from finetune.cli.shared import Arguments, Commands, add_command, delimiter, loading_libraries, with_recipe
from finetune.errors import DataError, FinetuneError, RecipeError
from finetune.recipe.names import ProblemType

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe

_MAX_SEEDS = 1000


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    parser = with_recipe(add_command(commands, "train", train, "run a recipe: train, score, analyze heads, report"))
    parser.add_argument("--dry-run", action="store_true", help="train one step, save, reload, and keep nothing")
    parser.add_argument("--seeds", type=int, metavar="N", help="train N runs, with the seeds seed, seed+1, ...")
    _add_check(commands)
    _add_sweep(commands)
    _add_init(commands)
    topics = add_command(commands, "help", _help, "list the guides, or show one of them")
    topics.add_argument("topic", nargs="?", help="such as recipes or troubleshooting")
    schema = add_command(commands, "schema", _schema, "print the JSON schema of recipes, for editors")
    schema.add_argument("--sweep", action="store_true", help="the schema of sweep files instead")
    schema.add_argument("--output", type=Path, help="the file to write instead, such as recipe.schema.json")


def _add_check(commands: Commands) -> None:
    parser = with_recipe(add_command(commands, "check", _check, "find the mistakes in a recipe or a sweep"))
    parser.add_argument("--data", action="store_true", help="also examine all rows: texts, labels and token lengths")
    parser.add_argument("--strict", action="store_true", help="with --data: warnings are errors (exit code 2)")
    parser.add_argument("--json", action="store_true", help="with --data: print the findings as JSON, and nothing else")


def _add_sweep(commands: Commands) -> None:
    parser = add_command(commands, "sweep", sweep, "run a recipe with different values, and find the best ones")
    parser.add_argument("sweep", type=Path, help="a YAML sweep, such as my_sweep.yaml, or a shipped one: sweep:heads")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--trials", type=int, metavar="N", help="number of trials, in place of that in the file")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage, in place of that in the file")
    parser.add_argument("--output", type=Path, help="folder of the sweep, in place of output_dir in the file")


def _add_init(commands: Commands) -> None:
    parser = add_command(commands, "init", _init, "look at a data file and write a recipe for it")
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="a data file (csv, tsv, txt, json, jsonl, parquet, arrow, also compressed), or a folder with train.*",
    )
    parser.add_argument("--text-column", metavar="COLUMN", help="the column of the text (default: guessed)")
    parser.add_argument("--text-pair-column", metavar="COLUMN", help="the column of the second text, for pairs")
    parser.add_argument("--label-column", metavar="COLUMN", help="the column of the label (default: guessed)")
    parser.add_argument(
        "--delimiter", type=delimiter, metavar="C", help="what separates the cells of a csv (default: as in its header)"
    )
    parser.add_argument("--problem-type", choices=get_args(ProblemType), help="what is predicted (default: guessed)")
    parser.add_argument("--validation-file", type=Path, help="default: validation.* next to train.*, or held-out rows")
    parser.add_argument("--test-file", type=Path, help="default: test.* next to train.*")
    parser.add_argument("--validation-size", type=float, metavar="S", help="share of the training rows to hold out")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens per row (default: fits 99 %% of the rows)")
    parser.add_argument("--model", help="hub id, folder or package:NAME/PATH (default: a small installed encoder)")
    parser.add_argument("--output", type=Path, help="the recipe to write (default: named after the data)")
    parser.add_argument("--force", action="store_true", help="replace an existing recipe")


def train(args: Arguments) -> None:
    """Run a recipe."""
    from finetune.recipe.loader import load_recipe

    # Before PyTorch is imported, so that mistakes are reported immediately.
    recipe = load_recipe(args.recipe, args.overrides)
    if args.seeds is not None:
        if args.seeds > _MAX_SEEDS:
            raise RecipeError(f"--seeds is {args.seeds}; it is the number of runs, at most {_MAX_SEEDS}")
        seeds = [recipe.seed + number for number in range(args.seeds)]
        recipe = load_recipe(args.recipe, [*args.overrides, f"seeds={seeds}"])
    with loading_libraries():
        from finetune.pipeline.series import dry_run_series, train_series
        from finetune.pipeline.train import train as run_recipe
    if recipe.seeds is None:
        run_recipe(recipe, dry_run=args.dry_run)
    elif args.dry_run:
        dry_run_series(recipe)
    else:
        train_series(recipe)


def sweep(args: Arguments) -> None:
    """Run a sweep, or the rest of it."""
    from finetune.pipeline.check import check_recipe
    from finetune.recipe.sweep_loader import load_sweep

    output = None if args.output is None else str(args.output)
    loaded = load_sweep(args.sweep, args.overrides, trials=args.trials, storage=args.storage, output_dir=output)
    check_recipe(loaded.first_trial())
    if importlib.util.find_spec("optuna") is None:
        raise FinetuneError("a sweep needs Optuna, which is not installed; run `pip install 'finetune[sweep]'`")
    with loading_libraries():
        from finetune.pipeline.sweep import sweep as run_sweep
    run_sweep(loaded)


def _check(args: Arguments) -> None:
    from finetune.pipeline.check import check, check_recipe
    from finetune.recipe.sweep_loader import is_sweep_file, load_sweep

    for name in ("strict", "json"):
        if getattr(args, name) and not args.data:
            raise RecipeError(f"--{name} is given without --data; add --data to examine the rows")
    if is_sweep_file(args.recipe):
        loaded = load_sweep(args.recipe, args.overrides)
        recipe = loaded.first_trial()
        output, notes = loaded.sweep.output_dir, [loaded.describe(), *check_recipe(recipe)]
    else:
        recipe, notes = check(args.recipe, args.overrides)
        output = recipe.output_dir
        if recipe.seeds is not None:
            notes = [
                f"A series of {len(recipe.seeds)} runs, with the seeds {', '.join(map(str, recipe.seeds))}",
                *notes,
            ]
    if not args.json:
        print(f"{args.recipe} is valid. Output directory: {output}")
        for note in notes:
            print(f"  {note}")
    if args.data:
        _check_data(args, recipe)


def _check_data(args: Arguments, recipe: Recipe) -> None:
    """Print what is remarkable about the rows; DataError with --strict if there are warnings."""
    from rich.console import Console

    with loading_libraries(stderr=args.json):
        from finetune.pipeline.check_data import check_data
        from finetune.report.quality_terminal import print_data_quality
        from finetune.runs.data_quality import WARNING
    quality = check_data(recipe)
    if args.json:
        print(json.dumps(asdict(quality), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_data_quality(Console(highlight=False), quality)
    count = len(quality.with_level(WARNING))
    if args.strict and count:
        raise DataError(
            f"the data of {args.recipe} {'have' if count > 1 else 'has'} {count} warning{'s' * (count > 1)}, and with "
            "--strict a warning is an error; correct the rows, or leave out --strict"
        )


def _init(args: Arguments) -> None:
    from rich.console import Console

    from finetune.data.column_roles import Roles
    from finetune.pipeline.init import InitOptions, init

    files = {"validation": args.validation_file, "test": args.test_file}
    options = InitOptions(
        file=args.file,
        roles=Roles(args.text_column, args.text_pair_column, args.label_column, args.problem_type),
        files={split: file for split, file in files.items() if file is not None},
        validation_size=args.validation_size,
        max_length=args.max_length,
        model=args.model,
        output=args.output,
        force=args.force,
        delimiter=args.delimiter,
    )
    init(options, Console(highlight=False))


def _help(args: Arguments) -> None:
    from finetune.help import show_help

    show_help(args.topic)


def _schema(args: Arguments) -> None:
    from finetune.recipe.json_schema import recipe_schema, sweep_schema
    from finetune.runs.atomic_files import write_text

    text = json.dumps(sweep_schema() if args.sweep else recipe_schema(), indent=2)
    if args.output is None:
        print(text)
        return
    if args.output.suffix != ".json":
        raise RecipeError(f"--output is '{args.output}'; the name of a JSON schema must end in .json")
    write_text(args.output, f"{text}\n")
    print(
        f"Schema: {args.output}. Editors use it for a {'sweep' if args.sweep else 'recipe'} that begins with this line:"
    )
    print(f"# yaml-language-server: $schema={args.output}")
