"""The training stage of a run: train the prepared classifier, save it, and load it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.markup import escape

from finetune.distributed import gather_results, on_main_process
from finetune.errors import TrainingStopped
from finetune.evaluation.baseline import constant_score
from finetune.evaluation.learning_curve import learning_curve_warnings
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.flops import flops_per_row
from finetune.models.int8_products import int8_layers
from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier, with_plain_adapters
from finetune.out_of_memory import peak_memory_mb
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.fit_outputs import fit_outputs
from finetune.pipeline.prepare import layers_compiled
from finetune.pipeline.trackers import log_entry, log_final_training
from finetune.progress import stage
from finetune.recipe.named_metrics import is_toolkit_metric
from finetune.recipe.schema import Recipe
from finetune.runs.atomic_files import atomic_replace_dir, report_write_errors
from finetune.runs.json_files import append_line, write_json
from finetune.runs.ownership import delete_previous_run
from finetune.runs.results import TrainingResult, TrainingSpeed
from finetune.runs.run_files import read_history, truncate_history
from finetune.signals import stop_after_step
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import (
    ResumeCheckpoint,
    clean_up_checkpoints,
    delete_old_checkpoints,
    find_checkpoint,
)
from finetune.training.int8_check import check_int8
from finetune.training.resume_check import (
    data_fingerprint,
    recipe_fingerprint,
    trains_on_standardized_targets,
)
from finetune.training.schedule import Plan
from finetune.training.trainer import Entry, Evaluation, Trainer

OnEvaluation = Callable[[int, dict[str, float | None]], bool]  # see `train`


def find_resume_checkpoint(context: RunContext) -> Path | None:
    """Return the checkpoint to resume from, the same on every process, and print which checkpoints were skipped.

    Raises:
        TrainingError: the folder that the recipe names is not complete and intact. Every process raises it.
    """
    requested, checkpoints = context.recipe.checkpoint.resume_from_checkpoint, context.folder.checkpoints
    if requested is None:
        return None

    def find() -> ResumeCheckpoint | None:
        if not context.accelerator.is_main_process:  # one process computes the checksums
            return None
        with report_write_errors(checkpoints):
            clean_up_checkpoints(checkpoints)
        return find_checkpoint(requested, checkpoints)

    with stage("looking for a checkpoint"):
        result = gather_results(context.accelerator, find)[0]
    assert result is not None
    for line in result.skipped:
        context.print_line(f"[yellow]{escape(line)}[/]")
    if result.folder is None:
        context.print_line("No complete checkpoint to resume from: starting at step 0.")
    return result.folder


def new_trainer(context: RunContext, inputs: RunInputs, plan: Plan, checkpoint: Path | None = None) -> Trainer:
    """Return a trainer at step 0 with the settings of the recipe.

    Args:
        checkpoint: from which the trainer will resume.
    """
    recipe, classifier = context.recipe, inputs.classifier
    return build_trainer(
        classifier,
        inputs.splits["train"],
        plan,
        Hyperparameters(
            recipe.training,
            recipe.seed,
            recipe.peft.loraplus_lr_ratio if recipe.peft else None,
            trains_on_standardized_targets(checkpoint),
        ),
        context.accelerator,
        run_fingerprint={
            **recipe_fingerprint(recipe, classifier.label_names),
            **data_fingerprint(inputs.splits, classifier.model),
        },
    )


def check_precision(context: RunContext, trainer: Trainer) -> dict[str, float]:
    """Check a run in int8 before its first step; return what `environment.json` says about it, {} in other precisions.

    Raises:
        TrainingError: see `check_int8`.
    """
    cosine = check_int8(trainer)
    if cosine is None:
        return {}
    layers = len(int8_layers(trainer.classifier.base))
    context.print_line(
        f"{layers} linear layers multiply in int8. On the first rows, the cosine of the gradient with that of float32 "
        f"is {cosine:.4f}."
    )
    return {"int8_gradient_cosine": round(cosine, 5)}


def train_stage(
    context: RunContext, inputs: RunInputs, trainer: Trainer, on_evaluation: OnEvaluation | None = None
) -> Classifier:
    """Train and save the classifier, and return it as loaded from disk.

    Raises:
        TrainingStopped: `on_evaluation` returned True before the last step.
    """
    recipe, folder, accelerator = context.recipe, context.folder, context.accelerator
    state = trainer.state

    def remove_later_results() -> None:
        truncate_history(folder, state.step)
        with report_write_errors(folder.checkpoints):
            delete_old_checkpoints(folder.checkpoints, recipe.checkpoint.save_total_limit, state.step)
        folder.training.unlink(missing_ok=True)  # written when an earlier run ended, after the current step

    def log(entry: Entry) -> None:
        on_main_process(accelerator, partial(append_line, folder.history, entry))
        log_entry(context, entry)
        if on_evaluation is not None and "eval_loss" in entry:
            _stop_if_requested(trainer, on_evaluation, entry)

    def validate() -> dict[str, float | None]:
        """Return the loss and the metrics on the validation rows."""
        started = time.perf_counter()
        batch_size = recipe.evaluation.per_device_eval_batch_size
        split = inputs.splits["validation"]
        predictions = predict(inputs.classifier, split, batch_size=batch_size, accelerator=accelerator)
        state.eval_seconds += time.perf_counter() - started
        state.rows_evaluated += len(predictions.labels)
        return predictions.metrics(recipe.metrics_to_compute())

    on_main_process(accelerator, remove_later_results)
    with (
        stop_after_step(is_main_process=accelerator.is_main_process) as request,
        layers_compiled(context, inputs.classifier),
    ):
        stopped = trainer.fit(
            folder.checkpoints,
            keep=recipe.checkpoint.save_total_limit,
            evaluation=_evaluation(recipe, validate) if "validation" in inputs.splits else None,
            log=log,
            print_line=context.print_line,
            stop_request=request,
        )
    result = training_result(trainer, stopped, recipe.best_metric(), course_warnings(context, inputs, trainer))
    trainer.unwrap_model()
    return save_trained(context, inputs, result)


def _stop_if_requested(trainer: Trainer, on_evaluation: OnEvaluation, entry: Entry) -> None:
    """Call `on_evaluation` on the main process; raise TrainingStopped on every process if it returns True."""
    values = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    step, last_step = trainer.state.step, trainer.plan.total_steps
    is_main_process = trainer.accelerator.is_main_process
    stop = gather_results(trainer.accelerator, lambda: is_main_process and on_evaluation(step, values))[0]
    if stop and step < last_step:
        raise TrainingStopped(f"training was stopped after the evaluation at step {step} of {last_step}")


def _evaluation(recipe: Recipe, validate: Callable[[], dict[str, float | None]]) -> Evaluation:
    tolerance = recipe.evaluation.best_model_tolerance
    assert isinstance(tolerance, float), "auto_settings.fill_in sets a tolerance that is left to auto"
    return Evaluation(validate, recipe.best_metric(), tolerance)


def save_trained(context: RunContext, inputs: RunInputs, result: TrainingResult) -> Classifier:
    """Save the trained model, load it again, check that its logits are the same, and return it."""
    folder, device, texts = context.folder, context.accelerator.device, inputs.sample_texts()

    def write() -> None:
        """Write the model and the result of training on the main process."""
        with atomic_replace_dir(folder.model) as temporary:
            save_classifier(trained, temporary)
        flops = flops_per_row(trained, inputs.splits["train"], device)
        write_json(folder.training, replace(result, flops_per_row=flops))
        if fitted is None:
            folder.fitted_outputs.unlink(missing_ok=True)
        else:
            write_json(folder.fitted_outputs, fitted)
        delete_previous_run(folder)

    classifier, fitted = fit_outputs(context, inputs, inputs.classifier)
    with stage("saving the model"):
        trained = with_plain_adapters(classifier, texts, device)
        on_main_process(context.accelerator, write)
        source = trained.source
        reloaded = load_classifier(
            folder.model,
            trust_remote_code=source is not None and source.trust_remote_code,
            use_safetensors=source is None or source.use_safetensors,
        )
        check_reload(trained, reloaded, texts, device)
    context.print_line(
        f"Trained {result.steps} steps at {result.speed.train_samples_per_second:.1f} rows/s ({result.stopped}); the "
        "saved model gives the same logits."
    )
    if fitted is not None and fitted.temperature_fit is not None:
        context.print_line(fitted.temperature_fit.text())
    if fitted is not None and fitted.thresholds is not None:
        context.print_line(escape(fitted.thresholds.text(fitted.rows)))
    for warning in result.warnings:
        context.print_line(f"[yellow]{escape(warning)}[/]")
    log_final_training(context)
    return reloaded


def course_warnings(context: RunContext, inputs: RunInputs, trainer: Trainer) -> list[str]:
    """Return warnings about the evaluations of a training run that has ended, the same on every process."""
    validation, metric = inputs.splits.get("validation"), context.recipe.best_metric()
    if validation is None:
        return []
    single_label = inputs.classifier.problem_type == "single_label_classification"
    has_constant_score = single_label and is_toolkit_metric(metric, inputs.classifier.problem_type)
    classes = len(inputs.classifier.label_names)

    def warnings() -> list[str]:
        if not context.accelerator.is_main_process or not context.folder.history.is_file():  # without any entry
            return []
        return learning_curve_warnings(
            read_history(context.folder),
            metric,
            constant_score=constant_score(validation.labels, classes, metric) if has_constant_score else None,
            all_steps_done=trainer.state.step == trainer.plan.total_steps,
        )

    return gather_results(context.accelerator, warnings)[0]


def training_result(trainer: Trainer, stopped: str, best_metric: str, warnings: Sequence[str] = ()) -> TrainingResult:
    """Return how training ended and how fast it was."""
    state, (trainable, total) = trainer.state, trainer.classifier.parameter_counts()
    seconds = max(state.train_seconds, 1e-9)
    return TrainingResult(
        steps=state.step,
        best_step=state.best_step,
        best_metric=best_metric,
        best_value=state.best_value,
        stopped=stopped,
        trainable_parameters=trainable,
        total_parameters=total,
        trained_dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in trainer.stepper.parameters})),
        speed=TrainingSpeed(
            train_seconds=state.train_seconds,
            train_samples_per_second=state.rows_seen / seconds,
            train_tokens_per_second=state.tokens_seen / seconds,
            padding_share=1 - state.tokens_seen / max(state.padded_seen, 1),
            eval_samples_per_second=state.rows_evaluated / max(state.eval_seconds, 1e-9),
            peak_memory_mb=peak_memory_mb(trainer.accelerator.device),
        ),
        notes=list(trainer.classifier.notes),
        warnings=list(warnings),
        seconds_per_epoch=state.train_seconds * trainer.plan.steps_per_epoch / state.step if state.step else None,
    )
