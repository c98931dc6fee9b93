"""Order the stages: recipe, data, classifier, training, scores, heads, report.

Started as `accelerate launch finetune/run.py RECIPE [section.key=value ...] [--dry-run]`, from any folder,
or as `finetune train RECIPE`. Each stage leaves its file in the run folder, and `evaluate` starts again
from those files alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started by path: Python put this folder first, where the project's own belongs. The recipe is read before
    # anything heavy is imported, so that a mistake is told at once.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from finetune.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape

from finetune.environment import describe_environment
from finetune.errors import FinetuneError
from finetune.families import FAMILIES
from finetune.finished import finished_folder, finished_recipe, load_received, open_run
from finetune.folder import (
    check_folder,
    claim_folder,
    new_folder,
    restored_on_failure,
    written_whole,
)
from finetune.locks import locked_folder
from finetune.lora import shared_roles
from finetune.memory import memory_told
from finetune.modeling import quiet_libraries
from finetune.plan import Plan, fill_in, make_plan
from finetune.preparation import (
    Material,
    frozen_layers_cached,
    prepare,
)
from finetune.processes import on_main_process
from finetune.recipe import Recipe
from finetune.report import read_record, write_report
from finetune.results import RunFolder, SplitScores, write_json
from finetune.run_files import HeadFailure
from finetune.saving import merge_classifier
from finetune.scoring import predict, predictions_table, score, write_predictions
from finetune.session import check_shared, finish, run_locked, start, with_precision
from finetune.stages import checkpoint_to_go_on_from, make_loop, rehearse, train_stage
from finetune.study import describe, study_heads, try_heads, write_heads
from finetune.terminal import say, show_data, show_heads, show_scores


@memory_told()
def train(recipe: Recipe, *, dry_run: bool = False) -> RunFolder:
    """Run the recipe from its data to its report, and return the run folder.

    With `dry_run`, do one training step, save, reload and compare, try the head analysis on a few rows, and leave no
    folder.

    Raises:
        FinetuneError: anything the user can repair; nothing is written before data and model are ready.
    """
    recipe, folder = with_precision(recipe), RunFolder(Path(recipe.output_dir))
    if not dry_run:
        check_folder(folder, recipe)
    accelerator, console = start(recipe, trackers=not dry_run)
    if dry_run:
        _dry_run(recipe, accelerator, console)
    else:
        check_shared(folder.path, accelerator)
        with run_locked(folder, accelerator):
            # Again: another process may have written there until the lock was taken.
            on_main_process(accelerator, partial(check_folder, folder, recipe))
            _train(recipe, folder, accelerator, console)
    return folder


def _train(recipe: Recipe, folder: RunFolder, accelerator: Accelerator, console: Console) -> None:
    """Run the recipe in a folder that no other process writes."""
    # Before the data is read: a checkpoint that cannot be gone on from is told at once.
    resume = checkpoint_to_go_on_from(recipe, folder, accelerator, console)
    recipe, material, plan = _prepared(recipe, accelerator, console)
    with (
        frozen_layers_cached(recipe, material, accelerator, tell=partial(say, console)) as cached,
        restored_on_failure(folder, is_main_process=accelerator.is_main_process),
    ):
        loop = make_loop(recipe, cached, plan, accelerator)
        if resume is not None:
            loop.resume(resume)
            say(console, f"Going on from {escape(str(resume))}, step {loop.state.step} of {plan.total_steps}.")
        environment = describe_environment(accelerator, recipe.seed)
        on_main_process(accelerator, partial(claim_folder, folder, recipe, environment, material.summary))
        trained = train_stage(recipe, cached, loop, folder, console)
        del loop
    evaluate_stage(recipe, replace(material, classifier=trained), folder, accelerator, console)
    finish(accelerator)


def _dry_run(recipe: Recipe, accelerator: Accelerator, console: Console) -> None:
    """Try all that a run does, on a few rows, and keep nothing."""
    recipe, material, plan = _prepared(recipe, accelerator, console)
    with frozen_layers_cached(recipe, material, accelerator, tell=partial(say, console), write=False):
        trained = rehearse(recipe, material, plan, accelerator, console)
    try_heads(recipe, replace(material, classifier=trained), accelerator)
    analyzed = ", its heads analyzed on a few rows" if recipe.head_importance else ""
    say(
        console,
        f"[green]Dry run passed[/]: one step trained, saved, reloaded with the same logits{analyzed}. Nothing was "
        "kept.",
    )
    finish(accelerator)


def _prepared(recipe: Recipe, accelerator: Accelerator, console: Console) -> tuple[Recipe, Material, Plan]:
    """Return the recipe with its open values chosen, what the run works on and when it does what; print notes on it."""
    material = prepare(recipe, accelerator)
    show_data(console, material.summary, material.splits["train"].where, recipe.data.max_length)
    base = material.classifier.base
    for note in (
        FAMILIES[base.config.model_type].note,
        shared_roles(base, recipe.peft.target_modules) if recipe.peft else "",
        *material.classifier.notes,
    ):
        if note:
            say(console, f"[yellow]{escape(note)}[/]")
    rows, labels = len(material.splits["train"]), len(material.classifier.label_names)
    plan = make_plan(recipe, rows=rows, processes=accelerator.num_processes, labels=labels)
    recipe, chosen = fill_in(recipe, plan, base.config.hidden_size)
    if chosen:
        say(console, chosen)
    if note := plan.warmup_note(recipe.training):
        say(console, f"[yellow]{note}[/]")
    return recipe, material, plan


@memory_told()
def evaluate(path: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Score a finished run again from its folder: scores, predictions, head importance and report.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, one of its files is damaged, or its data can no longer be
            read.
    """
    before = read_record(finished_folder(path), overrides, before_scoring=True).scores  # the report tells all of it
    with open_run(path, overrides) as run:
        scores = evaluate_stage(run.recipe, run.material, run.folder, run.accelerator, run.console)
        if before:
            equal = _figures(before) == _figures(scores)
            same = "the same, to the last digit, as" if equal else "[yellow]different from[/]"
            say(run.console, f"These scores are {same} those that the folder held before.")
    return run.folder


def _figures(scores: Mapping[str, SplitScores]) -> dict[str, SplitScores]:
    """Return scores without what is said of them, which another version may word in another way."""
    return {name: replace(found, interval_note="", warnings=[]) for name, found in scores.items()}


def merge(path: Path, output: Path | None = None, overrides: Sequence[str] = ()) -> tuple[Path, float]:
    """Write a finished run's model as plain weights; return the folder and the largest difference of a logit.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, or the output folder is not empty.
    """
    quiet_libraries()
    folder = finished_folder(path)
    recipe = finished_recipe(folder, overrides, read_data=False)
    target = (output or folder.merged).absolute()
    texts = [("one short text",), ("another text, which is a little longer than the first",)]
    with (
        locked_folder(folder.path, read_only_ok=output is not None),
        new_folder(target),
        written_whole(target) as aside,
    ):
        return target, merge_classifier(load_received(folder, recipe, overrides), aside, texts)


def evaluate_stage(
    recipe: Recipe, material: Material, folder: RunFolder, accelerator: Accelerator, console: Console
) -> dict[str, SplitScores]:
    """Score every split and write the report, then analyze the heads and add them; return the scores by split."""
    classifier, size = material.classifier, recipe.evaluation.per_device_eval_batch_size
    scores, tables = {}, []
    for name, split in material.scored().items():
        found = predict(classifier, split, batch_size=size, accelerator=accelerator)
        scores[name] = score(
            found,
            classifier.label_names,
            recipe.metric_names(),
            samples=recipe.evaluation.bootstrap_samples,
            seed=recipe.seed,
        )
        tables.append(predictions_table(name, split, found, classifier.label_names))

    def write() -> None:
        write_json(folder.scores, scores)
        if tables:
            write_predictions(folder.predictions, tables)
        write_report(folder)

    on_main_process(accelerator, write)
    show_scores(console, scores, material.summary)
    heads_stage(recipe, material, folder, accelerator, console)
    say(console, f"Report: {escape(str(folder.report))}")
    return scores


def heads_stage(
    recipe: Recipe, material: Material, folder: RunFolder, accelerator: Accelerator, console: Console
) -> None:
    """Add the head analysis to a report that is there without it; a failure becomes a warning in the report."""
    failure, heads = "", None
    try:
        with memory_told():
            heads = study_heads(recipe, material, accelerator)
    except Exception as error:  # whatever it is: training and scores are finished, and worth more
        if accelerator.num_processes > 1 and not isinstance(error, FinetuneError):
            raise  # the processes may no longer stand at the same place
        failure = describe(error)

    def write() -> None:
        if heads is not None:
            write_heads(folder, heads)
        elif failure:
            write_json(folder.heads_failure, HeadFailure(failure))
        else:
            return
        write_report(folder)

    on_main_process(accelerator, write)
    if heads is not None:
        show_heads(console, heads)
    elif failure:
        say(console, f"[yellow]The head analysis failed: {escape(failure)}. Scores and report are written.[/]")
