"""The command `train`: recipe, data, classifier, training, scores, heads, report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape

from finetune.distributed import on_main_process
from finetune.models.architectures import FAMILIES
from finetune.models.lora import fused_roles_note
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.analyze_heads import try_heads
from finetune.pipeline.environment import describe_environment
from finetune.pipeline.evaluate import evaluate_stage
from finetune.pipeline.prepare import Material, frozen_layers_cached, prepare
from finetune.pipeline.session import check_shared, finish, run_locked, start, with_precision
from finetune.pipeline.train_stage import checkpoint_to_go_on_from, make_trainer, rehearse, train_stage
from finetune.recipe import Recipe
from finetune.report.terminal import print_data, print_line
from finetune.runs.ownership import check_output_dir, restore_previous_on_failure, take_ownership
from finetune.runs.run_folder import RunFolder
from finetune.training.schedule import Plan, fill_in, make_plan


@report_out_of_memory()
def train(recipe: Recipe, *, dry_run: bool = False) -> RunFolder:
    """Run the recipe from its data to its report, and return the run folder.

    With `dry_run`, do one training step, save, reload and compare, try the head analysis on a few rows, and leave no
    folder.

    Raises:
        FinetuneError: anything the user can repair; nothing is written before data and model are ready.
    """
    recipe, folder = with_precision(recipe), RunFolder(Path(recipe.output_dir))
    if not dry_run:
        check_output_dir(folder, recipe)
    accelerator, console = start(recipe, trackers=not dry_run)
    if dry_run:
        _dry_run(recipe, accelerator, console)
    else:
        check_shared(folder.path, accelerator)
        with run_locked(folder, accelerator):
            # Again: another process may have written there until the lock was taken.
            on_main_process(accelerator, partial(check_output_dir, folder, recipe))
            _train(recipe, folder, accelerator, console)
    return folder


def _train(recipe: Recipe, folder: RunFolder, accelerator: Accelerator, console: Console) -> None:
    """Run the recipe in a folder that no other process writes."""
    # Before the data is read: a checkpoint that cannot be gone on from is told at once.
    resume = checkpoint_to_go_on_from(recipe, folder, accelerator, console)
    recipe, material, plan = _prepared(recipe, accelerator, console)
    with (
        frozen_layers_cached(recipe, material, accelerator, tell=partial(print_line, console)) as cached,
        restore_previous_on_failure(folder, is_main_process=accelerator.is_main_process),
    ):
        trainer = make_trainer(recipe, cached, plan, accelerator)
        if resume is not None:
            trainer.resume(resume)
            print_line(
                console, f"Going on from {escape(str(resume))}, step {trainer.state.step} of {plan.total_steps}."
            )
        environment = describe_environment(accelerator, recipe.seed)
        on_main_process(accelerator, partial(take_ownership, folder, recipe, environment, material.summary))
        trained = train_stage(recipe, cached, trainer, folder, console)
        del trainer
    evaluate_stage(recipe, replace(material, classifier=trained), folder, accelerator, console)
    finish(accelerator)


def _dry_run(recipe: Recipe, accelerator: Accelerator, console: Console) -> None:
    """Try all that a run does, on a few rows, and keep nothing."""
    recipe, material, plan = _prepared(recipe, accelerator, console)
    with frozen_layers_cached(recipe, material, accelerator, tell=partial(print_line, console), write=False):
        trained = rehearse(recipe, material, plan, accelerator, console)
    try_heads(recipe, replace(material, classifier=trained), accelerator)
    analyzed = ", its heads analyzed on a few rows" if recipe.head_importance else ""
    print_line(
        console,
        f"[green]Dry run passed[/]: one step trained, saved, reloaded with the same logits{analyzed}. Nothing was "
        "kept.",
    )
    finish(accelerator)


def _prepared(recipe: Recipe, accelerator: Accelerator, console: Console) -> tuple[Recipe, Material, Plan]:
    """Return the recipe with its open values chosen, what the run works on and when it does what; print notes on it."""
    material = prepare(recipe, accelerator)
    print_data(console, material.summary, material.splits["train"].where, recipe.data.max_length)
    base = material.classifier.base
    for note in (
        FAMILIES[base.config.model_type].note,
        fused_roles_note(base, recipe.peft.target_modules) if recipe.peft else "",
        *material.classifier.notes,
    ):
        if note:
            print_line(console, f"[yellow]{escape(note)}[/]")
    rows, labels = len(material.splits["train"]), len(material.classifier.label_names)
    plan = make_plan(recipe, rows=rows, processes=accelerator.num_processes, labels=labels)
    recipe, chosen = fill_in(recipe, plan, base.config.hidden_size)
    if chosen:
        print_line(console, chosen)
    if note := plan.warmup_note(recipe.training):
        print_line(console, f"[yellow]{note}[/]")
    return recipe, material, plan
