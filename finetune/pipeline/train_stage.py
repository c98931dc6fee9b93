"""The stages that train: the checkpoint to go on from, the trainer, and the model that it leaves."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.markup import escape

from finetune.distributed import gather_results, on_main_process
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier, with_plain_adapters
from finetune.out_of_memory import peak_memory_mb
from finetune.pipeline.prepare import Material, layers_compiled
from finetune.pipeline.session import check_shared, start_trackers
from finetune.recipe import Recipe
from finetune.report.terminal import print_line
from finetune.runs.atomic_files import report_write_errors
from finetune.runs.json_files import append_line, write_json
from finetune.runs.ownership import atomic_replace_dir, delete_previous_run, truncate_history
from finetune.runs.results import TrainingResult, TrainingSpeed
from finetune.runs.run_folder import RunFolder
from finetune.signals import Interrupted, stop_after_step
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import (
    FoundCheckpoint,
    clean_up_checkpoints,
    delete_old_checkpoints,
    find_checkpoint,
)
from finetune.training.resume_check import data_fingerprint, recipe_fingerprint
from finetune.training.schedule import Plan
from finetune.training.trainer import Entry, Evaluation, Trainer


def checkpoint_to_go_on_from(
    recipe: Recipe, folder: RunFolder, accelerator: Accelerator, console: Console
) -> Path | None:
    """Return the checkpoint that the recipe asks for, the same on every process, and say which were skipped.

    Raises:
        TrainingError: the folder asked for is not complete and intact. Every process raises it.
    """
    asked = recipe.checkpoint.resume_from_checkpoint
    if asked is None:
        return None

    def find() -> FoundCheckpoint | None:
        if not accelerator.is_main_process:  # checksums are read once
            return None
        with report_write_errors(folder.checkpoints):
            clean_up_checkpoints(folder.checkpoints)
        return find_checkpoint(asked, folder.checkpoints)

    known = gather_results(accelerator, find)[0]
    assert known is not None
    for line in known.skipped:
        print_line(console, f"[yellow]{escape(line)}[/]")
    if known.folder is None:
        print_line(console, "No complete checkpoint to go on from: starting at step 0.")
    return known.folder


def make_trainer(recipe: Recipe, material: Material, plan: Plan, accelerator: Accelerator) -> Trainer:
    """Return the trainer at step 0."""
    classifier = material.classifier
    return build_trainer(
        classifier,
        material.splits["train"],
        plan,
        Hyperparameters(recipe.training, recipe.seed, recipe.peft.loraplus_lr_ratio if recipe.peft else None),
        accelerator,
        run_fingerprint={
            **recipe_fingerprint(recipe, classifier.label_names),
            **data_fingerprint(material.splits, classifier.model),
        },
    )


def train_stage(
    recipe: Recipe, material: Material, trainer: Trainer, folder: RunFolder, console: Console
) -> Classifier:
    """Train, save the model, and return it as it was read back from disk."""
    classifier, accelerator = material.classifier, trainer.accelerator
    start_trackers(recipe, folder.path, accelerator)
    state = trainer.state

    def clear() -> None:
        truncate_history(folder, state.step)
        with report_write_errors(folder.checkpoints):
            delete_old_checkpoints(folder.checkpoints, recipe.checkpoint.save_total_limit, state.step)
        folder.training.unlink(missing_ok=True)  # of a run that was killed later: what it stands for is written again

    def log(entry: Entry) -> None:
        known = {key: value for key, value in entry.items() if key != "step" and value is not None}
        accelerator.log(known, step=int(entry["step"]))
        on_main_process(accelerator, partial(append_line, folder.history, entry))

    def validate() -> dict[str, float | None]:
        started = time.perf_counter()
        size = recipe.evaluation.per_device_eval_batch_size
        found = predict(classifier, material.splits["validation"], batch_size=size, accelerator=accelerator)
        state.eval_seconds += time.perf_counter() - started
        state.rows_evaluated += len(found.labels)
        values = found.metrics()
        return {name: values[name] for name in dict.fromkeys(("loss", *recipe.metric_names(), recipe.best_metric()))}

    on_main_process(accelerator, clear)
    with (
        stop_after_step(is_main_process=accelerator.is_main_process) as request,
        layers_compiled(recipe, classifier, accelerator),
    ):
        stopped = trainer.fit(
            folder.checkpoints,
            keep=recipe.checkpoint.save_total_limit,
            evaluation=Evaluation(validate, recipe.best_metric()) if "validation" in material.splits else None,
            log=log,
            print_line=partial(print_line, console),
            stop_request=request,
        )
    return save_stage(material, training_result(trainer, stopped, recipe.best_metric()), folder, trainer, console)


def save_stage(
    material: Material, result: TrainingResult, folder: RunFolder, trainer: Trainer, console: Console
) -> Classifier:
    """Write the model, read it back, and prove that it is the one that was trained."""
    accelerator = trainer.accelerator
    trainer.unwrap_model()
    texts = material.sample_texts()
    trained = with_plain_adapters(material.classifier, texts, accelerator.device)

    def write() -> None:
        with atomic_replace_dir(folder.model) as aside:
            save_classifier(trained, aside)
        write_json(folder.training, result)
        delete_previous_run(folder)

    on_main_process(accelerator, write)
    source = trained.source
    reloaded = load_classifier(
        folder.model,
        trust_remote_code=source is not None and source.trust_remote_code,
        use_safetensors=source is None or source.use_safetensors,
    )
    check_reload(trained, reloaded, texts, accelerator.device)
    print_line(
        console,
        f"Trained {result.steps} steps at {result.speed.train_samples_per_second:.1f} rows/s ({result.stopped}); "
        "the saved model gives the same logits.",
    )
    return reloaded


def rehearse(recipe: Recipe, material: Material, plan: Plan, accelerator: Accelerator, console: Console) -> Classifier:
    """Do one training step, save, reload and compare, all in a folder that is removed again; return what was reloaded.

    Raises:
        Interrupted: a signal came.
    """
    count, total = material.classifier.parameter_counts()
    one = replace(plan, total_steps=1, warmup_steps=0, log_every=1, eval_every=None, save_every=None)
    with tempfile.TemporaryDirectory() as aside:
        (shared,) = broadcast_object_list([aside])  # all read back what the main process saves
        folder = RunFolder(Path(shared))
        check_shared(folder.path, accelerator)
        try:
            trained = train_stage(recipe, material, make_trainer(recipe, material, one, accelerator), folder, console)
        except Interrupted as stopped:  # it names a checkpoint in this folder
            raise Interrupted(stopped.number, " in the dry run; nothing was kept") from None
        accelerator.wait_for_everyone()
    print_line(console, f"{count:,} of {total:,} parameters are trained, in {plan.total_steps} steps of the whole run.")
    return trained


def training_result(trainer: Trainer, stopped: str, best_metric: str) -> TrainingResult:
    """Return how training ended and how fast it was."""
    state, (trained, total) = trainer.state, trainer.classifier.parameter_counts()
    seconds = max(state.train_seconds, 1e-9)
    return TrainingResult(
        steps=state.step,
        best_step=state.best_step,
        best_metric=best_metric,
        best_value=state.best_value,
        stopped=stopped,
        trainable_parameters=trained,
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
    )
