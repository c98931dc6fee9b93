"""Order the stages: recipe, data, classifier, training, scores, heads, report.

Started as `accelerate launch finetune/run.py RECIPE [section.key=value ...] [--dry-run]`, from any folder,
or as `finetune train RECIPE`. Each stage leaves its file in the run folder, and `evaluate` starts again
from those files alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started by path: Python put this folder first, where the project's own belongs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from finetune.checkpoints import find_checkpoint
from finetune.data.encoding import EncodedSplit, word_tokenizer
from finetune.data.prepare import LabelledSplits, encode_splits, read_labelled, summarise, training_texts
from finetune.environment import describe_environment
from finetune.errors import DataError, ModelError, TrainingError
from finetune.heads.importance import gradient_importance
from finetune.modeling import (
    Classifier,
    Lora,
    Source,
    check_reload,
    load_classifier,
    load_tokenizer,
    new_classifier,
    pretrained_classifier,
    quiet_libraries,
    save_classifier,
)
from finetune.plan import Plan, make_plan
from finetune.progress import TrainingProgress
from finetune.recipe import Recipe, dump_recipe, load_recipe
from finetune.report import write_report
from finetune.results import (
    RunFolder,
    SplitScores,
    SplitSummary,
    Training,
    append_line,
    read_json,
    read_lines,
    write_json,
    write_text,
)
from finetune.scoring import predict, predictions_table, score, write_predictions
from finetune.terminal import say, show_data, show_heads, show_scores
from finetune.training import Loop, fit, training_result


@dataclass(frozen=True)
class Material:
    """What a run works on: rows and the classifier."""

    classifier: Classifier
    splits: dict[str, EncodedSplit]
    summary: dict[str, SplitSummary]

    def scored(self) -> dict[str, EncodedSplit]:
        """Return the splits that are scored: all but the training rows."""
        return {name: split for name, split in self.splits.items() if name != "train"}

    def sample_texts(self) -> list[tuple[str, ...]]:
        """Return a few rows' texts for comparing two classifiers."""
        rows = self.splits["train"].texts[:8]
        return list(zip(*rows.values(), strict=True))


def train(recipe: Recipe, *, dry_run: bool = False) -> RunFolder:
    """Run the recipe from its data to its report, and return the run folder.

    With `dry_run`, do one training step, save, reload and compare, and leave no folder.

    Raises:
        FinetuneError: anything the user can repair; nothing is written before data and model are ready.
    """
    accelerator, console = start(recipe)
    folder = RunFolder(Path(recipe.output_dir))
    if not dry_run:
        check_folder(folder, recipe)
    material = prepare(recipe, accelerator)
    show_data(console, material.summary, material.splits["train"].where, recipe.data.max_length)
    plan = make_plan(recipe, rows=len(material.splits["train"]), processes=accelerator.num_processes)
    if dry_run:
        rehearse(recipe, material, plan, accelerator, console)
        return folder
    if accelerator.is_main_process:
        claim_folder(folder, recipe, accelerator, material.summary)
    accelerator.wait_for_everyone()
    trained = train_stage(recipe, material, plan, folder, accelerator, console)
    evaluate_stage(recipe, replace(material, classifier=trained), folder, accelerator, console)
    return folder


def evaluate(path: Path) -> RunFolder:
    """Score a finished run again from its folder: scores, predictions, head importance and report.

    Raises:
        FinetuneError: the folder holds no finished run, or its data can no longer be read.
    """
    folder = RunFolder(path.absolute())
    if not (folder.recipe.is_file() and folder.model.is_dir()):
        raise DataError(f"{path} holds no finished run (recipe.yaml and model/); name the folder that `train` wrote")
    recipe = load_recipe(folder.recipe)
    accelerator, console = start(recipe)
    classifier = load_classifier(folder.model)
    splits = read_labelled(recipe.data, classifier.problem_type, classifier.label_names, recipe.seed)
    encoded = encode_splits(splits, classifier.tokenizer, recipe.data)
    material = Material(classifier, encoded, summarise(splits, encoded, recipe.data))
    before = read_json(folder.scores, dict[str, SplitScores]) if folder.scores.is_file() else None
    scores = evaluate_stage(recipe, material, folder, accelerator, console)
    if before is not None:
        same = "the same, to the last digit, as" if before == scores else "[yellow]different from[/]"
        say(console, f"These scores are {same} those that the folder held before.")
    return folder


def start(recipe: Recipe) -> tuple[Accelerator, Console]:
    """Return the accelerator and the terminal (silent on all but the main process), with seed and threads set."""
    quiet_libraries()
    datasets.disable_progress_bars()
    tracker = None if recipe.logging.report_to == "none" else recipe.logging.report_to
    if recipe.training.mixed_precision == "fp16" and (recipe.training.use_cpu or not torch.cuda.is_available()):
        raise TrainingError("training.mixed_precision: fp16 needs a GPU, and there is none; use bf16 or no")
    accelerator = Accelerator(
        cpu=recipe.training.use_cpu,
        mixed_precision=recipe.training.mixed_precision,
        log_with=tracker,
        project_dir=str(RunFolder(Path(recipe.output_dir)).trackers) if tracker else None,
    )
    if accelerator.device.type == "cpu":
        torch.set_num_threads(recipe.training.num_threads or threads_for_each(accelerator.num_processes))
    set_seed(recipe.seed)
    return accelerator, Console(quiet=not accelerator.is_main_process, highlight=False)


def threads_for_each(processes: int) -> int:
    """Return CPU threads for each process: OMP_NUM_THREADS above 1, else all cores shared out.

    `accelerate launch` sets OMP_NUM_THREADS to 1 unasked, so 1 is not taken for a wish.
    """
    asked = int(os.environ.get("OMP_NUM_THREADS", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked if asked > 1 else max(1, cores // here)


def prepare(recipe: Recipe, accelerator: Accelerator) -> Material:
    """Read the data and build the classifier; the main process first, so that caches are written once."""
    with accelerator.main_process_first():
        splits = read_labelled(recipe.data, recipe.task.problem_type, recipe.task.label_names, recipe.seed)
        check_splits(recipe, splits.raw)
        classifier = build(recipe, splits)
        encoded = encode_splits(splits, classifier.tokenizer, recipe.data)
    return Material(classifier, encoded, summarise(splits, encoded, recipe.data))


def check_splits(recipe: Recipe, splits: Mapping[str, object]) -> None:
    """Raise DataError if a stage will ask for a split that there is not."""
    heads = recipe.head_importance
    repair = "give data.validation_file (or rows, or split), or hold some out with data.validation_size: 0.1"
    if recipe.evaluation.eval_strategy != "no" and "validation" not in splits:
        raise DataError(f"there are no validation rows to evaluate on; {repair}, or set evaluation.eval_strategy: no")
    if heads is not None and heads.split not in splits:
        raise DataError(
            f"head_importance.split is {heads.split}, but there are no such rows; {repair}, or name another"
        )


def build(recipe: Recipe, splits: LabelledSplits) -> Classifier:
    """Return the recipe's classifier, ready to be trained."""
    model, task = recipe.model, {"label_names": splits.label_names, "problem_type": recipe.task.problem_type}
    max_length = recipe.data.max_length
    lora = recipe.peft and Lora(
        recipe.peft.r, recipe.peft.lora_alpha, recipe.peft.lora_dropout, recipe.peft.target_modules
    )
    if model.model_name_or_path is not None:
        source = Source(model.model_name_or_path, model.revision, model.dtype, model.attn_implementation)
        return pretrained_classifier(source, load_tokenizer(source), **task, max_length=max_length, lora=lora)
    if lora is not None:
        raise ModelError(
            "peft adapts pretrained weights, but model.model_type builds new ones; remove the peft section"
        )
    assert model.model_type is not None
    words = int(model.config_overrides.get("vocab_size", 30_000))
    tokenizer = word_tokenizer(training_texts(splits, recipe.data), words)
    return new_classifier(model.model_type, model.config_overrides, tokenizer, **task, max_length=max_length)


def check_folder(folder: RunFolder, recipe: Recipe) -> None:
    """Raise TrainingError if the run folder holds something that must not be lost."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise TrainingError(f"output_dir {path} is a file; name a folder")
    if not path.is_dir() or not any(path.iterdir()) or recipe.checkpoint.resume_from_checkpoint:
        return
    if not folder.recipe.is_file():
        raise TrainingError(f"output_dir {path} holds files that are no run; name another folder")
    if not recipe.overwrite_output_dir:
        raise TrainingError(
            f"output_dir {path} holds an earlier run; name another, go on with it "
            "(checkpoint.resume_from_checkpoint=auto), or replace it (overwrite_output_dir=true)"
        )


def claim_folder(folder: RunFolder, recipe: Recipe, accelerator: Accelerator, summary: dict[str, SplitSummary]) -> None:
    """Make the run folder, clear an earlier run out of it unless it is resumed, and write down what is run."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not recipe.checkpoint.resume_from_checkpoint:
            for old in folder.written():
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        write_text(folder.recipe, dump_recipe(recipe))
        write_json(folder.environment, describe_environment(accelerator, recipe.seed))
        write_json(folder.data, summary)
    except OSError as error:
        raise TrainingError(f"output_dir {folder.path} cannot be written: {error.strerror}; name another") from error


def rehearse(recipe: Recipe, material: Material, plan: Plan, accelerator: Accelerator, console: Console) -> None:
    """Do one training step, save, reload and compare, all in a folder that is removed again."""
    one = replace(plan, total_steps=1, log_every=1, eval_every=None, save_every=None)
    with tempfile.TemporaryDirectory() as aside:
        folder = RunFolder(Path(aside))
        train_stage(recipe, material, one, folder, accelerator, console)
    trained, total = material.classifier.parameter_counts()
    say(console, f"{trained:,} of {total:,} parameters are trained, in {plan.total_steps} steps of the whole run.")
    say(console, "[green]Dry run passed[/]: one step trained, saved, reloaded with the same logits. Nothing was kept.")


def train_stage(
    recipe: Recipe, material: Material, plan: Plan, folder: RunFolder, accelerator: Accelerator, console: Console
) -> Classifier:
    """Train, save the model, and return it as it was read back from disk."""
    classifier, resume = (
        material.classifier,
        find_checkpoint(recipe.checkpoint.resume_from_checkpoint, folder.checkpoints),
    )
    loop = Loop(classifier, material.splits["train"], plan, recipe.training, seed=recipe.seed, accelerator=accelerator)
    accelerator.init_trackers("", config={})
    if resume is not None:
        loop.resume(resume)
        say(console, f"Going on from {resume}, step {loop.state.step} of {plan.total_steps}.")
    elif recipe.checkpoint.resume_from_checkpoint:
        say(console, "No complete checkpoint to go on from: starting at step 0.")
    if accelerator.is_main_process:
        forget_after(folder.history, loop.state.step)
    timing = {"seconds": 0.0, "rows": 0}

    def log(entry: dict[str, float]) -> None:
        accelerator.log({key: value for key, value in entry.items() if key != "step"}, step=int(entry["step"]))
        if accelerator.is_main_process:
            append_line(folder.history, entry)

    def validate() -> dict[str, float]:
        started = time.perf_counter()
        size = recipe.evaluation.per_device_eval_batch_size
        found = predict(classifier, material.splits["validation"], batch_size=size, accelerator=accelerator)
        timing["seconds"] += time.perf_counter() - started
        timing["rows"] += len(found.labels)
        values = found.metrics()
        return {name: values[name] for name in dict.fromkeys(("loss", *recipe.metric_names(), recipe.best_metric()))}

    with TrainingProgress(console) as progress:
        stopped = fit(
            loop,
            best_metric=recipe.best_metric(),
            evaluate=validate if "validation" in material.splits else None,
            log=log,
            progress=progress,
            checkpoints=folder.checkpoints,
            keep=recipe.checkpoint.save_total_limit,
        )
    accelerator.end_training()
    speed = timing["rows"] / timing["seconds"] if timing["rows"] else 0.0
    return save_stage(material, training_result(loop, stopped, recipe.best_metric(), speed), folder, loop, console)


def save_stage(material: Material, result: Training, folder: RunFolder, loop: Loop, console: Console) -> Classifier:
    """Write the model, read it back, and prove that it is the one that was trained."""
    accelerator = loop.accelerator
    accelerator.unwrap_model(loop.model, keep_fp32_wrapper=False)  # takes mixed precision off the model itself
    if accelerator.is_main_process:
        save_classifier(material.classifier, folder.model)
        write_json(folder.training, result)
    accelerator.wait_for_everyone()
    reloaded = load_classifier(folder.model)
    check_reload(material.classifier, reloaded, material.sample_texts(), accelerator.device)
    say(
        console,
        f"Trained {result.steps} steps at {result.speed.train_samples_per_second:.1f} rows/s ({result.stopped}); "
        "the saved model gives the same logits.",
    )
    return reloaded


def forget_after(history: Path, step: int) -> None:
    """Drop the history's entries after `step`: a resumed run writes them again."""
    kept = [entry for entry in read_lines(history) if entry["step"] <= step]
    history.unlink(missing_ok=True)
    for entry in kept:
        append_line(history, entry)


def evaluate_stage(
    recipe: Recipe, material: Material, folder: RunFolder, accelerator: Accelerator, console: Console
) -> dict[str, SplitScores]:
    """Score every split, analyse the heads, write the report; return the scores by split."""
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
    asked, heads = recipe.head_importance, None
    if asked is not None:
        heads = gradient_importance(
            classifier,
            material.splits[asked.split],
            asked.split,
            max_samples=asked.max_samples,
            batch_size=size,
            seed=recipe.seed,
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        write_json(folder.scores, scores)
        if tables:
            write_predictions(folder.predictions, tables)
        if heads is not None:
            write_json(folder.heads, heads)
        write_report(folder)
    show_scores(console, scores, material.summary)
    if heads is not None:
        show_heads(console, heads)
    say(console, f"Report: {folder.report}")
    return scores


if __name__ == "__main__":
    from finetune.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
