"""The dry run of `train --dry-run`: every stage of a run with one training step and a few rows; nothing is kept."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from accelerate.utils import broadcast_object_list
from rich.console import Console

from finetune.errors import TrainingError
from finetune.models.classifier import Classifier
from finetune.pipeline.analyze_heads import analyze, describe_error
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.launch_checks import check_shared_folder
from finetune.pipeline.prepare import frozen_layers_cached, prepare
from finetune.pipeline.session import finish
from finetune.pipeline.train_stage import check_precision, new_trainer, train_stage
from finetune.runs.run_folder import RunFolder
from finetune.signals import Interrupted
from finetune.training.schedule import Plan

_FEW_ROWS = 8
_FEW_SECONDS = 2.0


def dry_run(context: RunContext) -> None:
    """Train one step, save, reload and compare, and analyze the heads on a few rows; keep no file."""
    context, inputs, plan = prepare(context)
    with frozen_layers_cached(context, inputs, write=False):
        trained = _train_one_step(context, inputs, plan)
    _try_head_analysis(context, replace(inputs, classifier=trained))
    analyzed = ", its heads analyzed on a few rows" if context.recipe.head_importance else ""
    context.print_line(
        f"[green]Dry run passed[/]: one step trained, saved, reloaded with the same logits{analyzed}. Nothing was kept."
    )
    finish(context)


def _train_one_step(context: RunContext, inputs: RunInputs, plan: Plan) -> Classifier:
    """Train one step and save in a temporary folder, and return the reloaded classifier.

    Raises:
        Interrupted: a signal was received.
    """
    trainable, total = inputs.classifier.parameter_counts()
    one_step = replace(plan, total_steps=1, warmup_steps=0, log_every=1, eval_every=None, save_every=None)
    with tempfile.TemporaryDirectory() as temporary:
        (shared,) = broadcast_object_list([temporary])  # all processes reload what the main process saves
        temporary_run = replace(context, folder=RunFolder(Path(shared)))
        check_shared_folder(temporary_run.folder.path, context.accelerator)
        try:
            trainer = new_trainer(temporary_run, inputs, one_step)
            check_precision(temporary_run, trainer)
            trained = train_stage(temporary_run, inputs, trainer)
        except Interrupted as interrupted:  # its message names a checkpoint in the temporary folder
            raise Interrupted(interrupted.number, " in the dry run; nothing was kept") from None
        context.accelerator.wait_for_everyone()
    context.print_line(f"{trainable:,} of {total:,} parameters are trained; the full run has {plan.total_steps} steps.")
    return trained


def _try_head_analysis(context: RunContext, inputs: RunInputs) -> None:
    """Run the recipe's head analysis on a few rows.

    Raises:
        TrainingError: it fails.
    """
    settings = context.recipe.head_importance
    if settings is None:
        return
    limits = {
        "method": settings.methods(),
        "max_samples": _FEW_ROWS,
        "curve_samples": _FEW_ROWS,
        "random_orders": 1,
        "max_seconds": _FEW_SECONDS,
    }
    recipe = context.recipe.model_copy(update={"head_importance": settings.model_copy(update=limits)})
    quiet = Console(quiet=True)  # the expected cost is not that of the run
    try:
        analyze(replace(context, recipe=recipe, console=quiet), inputs, {})
    except Exception as error:
        raise TrainingError(
            f"the head analysis fails: {describe_error(error)}; change head_importance, or set it to null"
        ) from error
