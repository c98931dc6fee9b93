"""The command `train`: from a recipe to a trained model, its scores, its head analysis and its report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.markup import escape

from finetune.distributed import on_main_process
from finetune.errors import RecipeError, TrainingStopped
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.baselines import Baselines, fit_baselines, untrained_encoder
from finetune.pipeline.check_data import write_data_quality
from finetune.pipeline.context import RunContext, RunInputs, SharedWork
from finetune.pipeline.dry_run import dry_run as start_dry_run
from finetune.pipeline.environment import describe_environment
from finetune.pipeline.evaluate import evaluate_stage
from finetune.pipeline.label_errors import training_label_errors
from finetune.pipeline.launch_checks import check_shared_folder
from finetune.pipeline.prepare import frozen_layers_cached, prepare
from finetune.pipeline.session import finish, run_locked, start, with_precision
from finetune.pipeline.trackers import check_tracker, start_trackers, trackers_finished_on_failure
from finetune.pipeline.train_stage import (
    OnEvaluation,
    check_precision,
    find_resume_checkpoint,
    new_trainer,
    train_stage,
)
from finetune.progress import stage
from finetune.recipe.schema import Recipe
from finetune.runs.label_errors import LabelError
from finetune.runs.ownership import check_output_dir, restore_previous_on_failure, take_ownership
from finetune.runs.run_folder import RunFolder


@report_out_of_memory()
def train(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    on_evaluation: OnEvaluation | None = None,
    shared: SharedWork | None = None,
) -> RunFolder:
    """Train the recipe's classifier, score it, analyze its heads, write the report, and return the run folder.

    Args:
        dry_run: train one step, save, reload and compare, try the head analysis on a few rows, and keep nothing.
        on_evaluation: called on the main process after each evaluation during training, with the step and the loss and
            metrics on the validation rows; if it returns True before the last step, training stops.
        shared: the work that the run shares with the other runs of its series.

    Raises:
        FinetuneError: an error that the user can fix; nothing is written before data and model are ready.
        TrainingStopped: `on_evaluation` returned True. The folder is that of an interrupted run.
    """
    if recipe.seeds is not None:
        raise RecipeError("seeds: the recipe is that of a series; call train_series(recipe), or set seeds: null")
    recipe, folder = with_precision(recipe), RunFolder(Path(recipe.output_dir))
    if dry_run:
        start_dry_run(start(recipe, folder))
        return folder
    check_output_dir(folder, recipe)
    context = start(recipe, folder, trackers=True, shared=shared)
    check_shared_folder(folder.path, context.accelerator)
    with run_locked(context), trackers_finished_on_failure(context):
        # A second check: another process may have written to the folder before it was locked.
        on_main_process(context.accelerator, partial(check_output_dir, folder, recipe))
        try:
            _train(context, on_evaluation)
        except TrainingStopped:
            finish(context)
            raise
    return folder


def _train(context: RunContext, on_evaluation: OnEvaluation | None) -> None:
    """Run the recipe; the caller has locked the run folder."""
    # Before the data are read, so that these errors are reported within seconds.
    check_tracker(context)
    checkpoint = find_resume_checkpoint(context)
    context, inputs, plan = prepare(context, resuming=checkpoint is not None)
    accelerator = context.accelerator
    with (
        frozen_layers_cached(context, inputs) as cached,
        restore_previous_on_failure(context.folder, is_main_process=accelerator.is_main_process),
    ):
        with stage("building the trainer"):
            trainer = new_trainer(context, cached, plan, checkpoint)
        # With the weights before step 0, also if the run resumes: the gradient of trained weights is mostly noise.
        precision = check_precision(context, trainer)
        if checkpoint is not None:
            with stage("building the trainer"):
                trainer.resume(checkpoint)
            step = f"step {trainer.state.step} of {plan.total_steps}"
            context.print_line(f"Resuming from {escape(str(checkpoint))} at {step}.")
        environment = describe_environment(accelerator, context.recipe.seed) | precision
        write_first_files = partial(take_ownership, context.folder, context.recipe, environment, inputs.summary)
        on_main_process(accelerator, write_first_files)
        on_main_process(accelerator, partial(write_data_quality, context, inputs))
        resume_step = None if checkpoint is None else trainer.state.step
        start_trackers(context, list(inputs.held_out_splits()), resume_step=resume_step)
        trained = train_stage(context, cached, trainer, on_evaluation)
        del trainer, cached
    inputs = replace(inputs, classifier=trained)
    accelerator.free_memory()  # of the optimizer, and of the model that was trained
    # After training, which then starts sooner; a trial that is stopped early does not need them.
    baselines, label_errors = _baselines_and_label_errors(context, inputs)
    evaluate_stage(context, inputs, baselines, label_errors)
    finish(context)


def _baselines_and_label_errors(context: RunContext, inputs: RunInputs) -> tuple[Baselines, list[LabelError]]:
    """Return the baselines, and the training rows whose label is probably wrong.

    The checkpoint is loaded again for both, and its encoder is freed when they are ready.
    """
    encoder = untrained_encoder(context, inputs)
    return fit_baselines(context, inputs, encoder), training_label_errors(context, inputs, encoder)
