"""Create the `RunInputs` and the `Plan` of a new run: read and encode rows, build the classifier, plan the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from rich.markup import escape

from finetune.data.batching import load_batches
from finetune.data.splits import LabeledSplits, encode_splits, read_labeled
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import local_main_process_first
from finetune.errors import ModelError
from finetune.evaluation.loaded_metric import check_loaded_metrics
from finetune.evaluation.scored_rows import ScoredRows
from finetune.models.activation_cache import CacheSettings, cached_frozen_layers
from finetune.models.architectures import FAMILIES
from finetune.models.classifier import Classifier
from finetune.models.compilation import compiled_layers
from finetune.models.lora import fused_roles_note
from finetune.models.output_bias import init_output_bias
from finetune.models.precision import check_autocast
from finetune.models.pretrained import checkpoint_labels
from finetune.out_of_memory import is_out_of_memory
from finetune.pipeline.build_model import build_classifier, checkpoint_source, with_pooling
from finetune.pipeline.classifier_init import LINEAR_PROBE, init_classifier
from finetune.pipeline.context import RunContext, RunInputs, SharedWork
from finetune.pipeline.fit_thresholds import check_threshold_labels
from finetune.progress import stage
from finetune.recipe.schema import Recipe
from finetune.recipe.validation import NO_VALIDATION
from finetune.report.terminal import print_data
from finetune.training.auto_settings import RunSize, describe_choices, fill_in
from finetune.training.best_metric import choose_best_metric, imbalance_hint
from finetune.training.schedule import Plan, make_plan


def prepare(context: RunContext, *, resuming: bool = False) -> tuple[RunContext, RunInputs, Plan]:
    """Return what training needs: the context with a complete recipe, the inputs, and the plan.

    One process per machine prepares first; the others then read the caches that it has written.

    Args:
        resuming: the weights come from a checkpoint.
    """
    recipe, accelerator = context.recipe, context.accelerator
    with stage("preparing data and model"):
        inputs = local_main_process_first(accelerator, partial(new_inputs, recipe, context.shared))
    train, base = inputs.splits["train"], inputs.classifier.base
    check_autocast(base, accelerator.mixed_precision)
    show_data = partial(print_data, context.console, inputs.summary, train.source)
    context.shared.once("table of the data", show_data)
    for line in context.shared.first_time("labels", list(inputs.notes)):
        context.print_line(escape(line))
    notes = [FAMILIES[base.config.model_type].note]
    notes += [fused_roles_note(base, recipe.peft.target_modules)] if recipe.peft else []
    for note in (*notes, *inputs.classifier.notes):
        if note:
            context.print_line(f"[yellow]{escape(note)}[/]")
    recipe, pooling_line = with_pooling(recipe, inputs.classifier)
    recipe, inputs, init_line = init_classifier(replace(context, recipe=recipe), inputs, resuming=resuming)
    recipe, metric_line = choose_best_metric(recipe, inputs.summary["train"].label_counts)
    hint = imbalance_hint(recipe, inputs.summary["train"].label_counts)
    for line in filter(None, (pooling_line, init_line, metric_line, hint)):
        context.print_line(escape(line))
    adds_names = inputs.summary["train"].label_name_rows > 0
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"label_name_rows": adds_names})})
    recipe, choices = fill_in(recipe, run_size(recipe, inputs, accelerator.num_processes))
    for line in context.shared.first_time("settings", describe_choices(choices)):
        context.print_line(line)
    plan = make_plan(recipe, rows=len(train), processes=accelerator.num_processes)
    if note := plan.warmup_note(recipe.training):
        context.print_line(f"[yellow]{note}[/]")
    return replace(context, recipe=recipe), inputs, plan


def run_size(recipe: Recipe, inputs: RunInputs, processes: int) -> RunSize:
    """Return the numbers on which the settings depend that the recipe leaves to `auto`.

    Args:
        recipe: with the initialization of the classification head that was chosen.
    """
    return RunSize(
        rows=len(inputs.splits["train"]),
        labels=len(inputs.classifier.label_names),
        hidden_size=inputs.classifier.base.config.hidden_size,
        has_validation="validation" in inputs.splits,
        held_out=inputs.held_out,
        validation_rows=len(inputs.splits["validation"]) if "validation" in inputs.splits else None,
        processes=processes,
        starts_from_probe=recipe.model.classifier_init == LINEAR_PROBE,
    )


def new_inputs(recipe: Recipe, shared: SharedWork) -> RunInputs:
    """Return the recipe's rows and its untrained classifier, after one forward pass as a check.

    The rows are read and tokenized by the first run of a series.

    Raises:
        DataError: a file, a row or a label is wrong, or a required split is missing.
        ModelError: the classifier cannot be built, or the forward pass fails.
    """
    labeled = labeled_rows(recipe, shared)
    classifier = build_classifier(recipe, labeled)
    check_threshold_labels(recipe, classifier.label_names)
    data, tokenizer = recipe.data, classifier.tokenizer
    encode = partial(encode_splits, labeled, tokenizer, data.max_length, classifier.long_text)
    splits = shared.once("encoded rows", encode)
    init_output_bias(classifier, splits.encoded["train"].labels)
    try_longest_row(classifier, splits.encoded)
    _try_loaded_metrics(recipe, labeled.label_names, splits.encoded)
    return RunInputs(classifier, splits.encoded, splits.summaries, labeled.held_out, notes=labeled.notes)


def _try_loaded_metrics(recipe: Recipe, label_names: Sequence[str], splits: Mapping[str, EncodedSplit]) -> None:
    """Compute the metrics that are loaded from files or the hub once, with the labels as predictions.

    Raises:
        RecipeError: one of them cannot be loaded or computed.
    """
    sources = recipe.loaded_metrics()
    if not sources:
        return
    split = splits["validation"] if "validation" in splits else splits["train"]
    problem_type, labels = recipe.task.problem_type, np.asarray(split.labels)
    probabilities = None
    if problem_type != "regression":
        probabilities = labels.astype(float) if labels.ndim == 2 else np.eye(len(label_names))[labels]
    rows = ScoredRows(labels, labels, probabilities, tuple(label_names), problem_type)
    check_loaded_metrics(sources, rows, recipe.best_metric())


def labeled_rows(recipe: Recipe, shared: SharedWork) -> LabeledSplits:
    """Return the recipe's rows with their labels; they are read once."""
    return shared.once("labeled rows", partial(_read_rows, recipe))


def _read_rows(recipe: Recipe) -> LabeledSplits:
    """Return the recipe's rows with their labels."""
    model, task = recipe.model, recipe.task
    return read_labeled(
        recipe.data_to_read(),
        task.problem_type,
        task.label_names,
        recipe.rows_seed(),
        suggested=checkpoint_labels(checkpoint_source(model)) if model.model_name_or_path else None,
        required=required_splits(recipe),
    )


def required_splits(recipe: Recipe) -> dict[str, str]:
    """Return the splits that evaluation and head analysis need, each with the error message if it is missing."""
    required = {}
    if recipe.evaluation.eval_strategy != "no":
        required["validation"] = (
            f"there are no validation rows to evaluate on; {NO_VALIDATION}, or set evaluation.eval_strategy: no"
        )
    if recipe.outputs.needs_validation_rows() and "validation" not in required:
        required["validation"] = (
            f"outputs.thresholds are tuned on validation rows, but there are none; {NO_VALIDATION}, or give a number"
        )
    heads = recipe.head_importance
    if heads is not None and heads.split not in required:
        required[heads.split] = (
            f"head_importance.split is {heads.split}, but there are no {heads.split} rows; {NO_VALIDATION}, or set "
            "another split"
        )
    return required


@torch.no_grad()
def try_longest_row(classifier: Classifier, splits: Mapping[str, EncodedSplit]) -> None:
    """Run the classifier on the longest row of all splits, before anything is written.

    Raises:
        ModelError: the forward pass fails, or its logits are not finite.
    """
    if str(classifier.base.config._attn_implementation).startswith("flash"):  # needs a GPU; the model is on the CPU
        return
    name, split = max(splits.items(), key=lambda item: int(item[1].lengths.max()))
    index = int(split.lengths.argmax())
    row = f"{name} row {split.numbers[index]}"
    (batch,) = load_batches(split, [np.array([index])], classifier.tokenizer, device=torch.device("cpu"))
    model_name = f"model '{classifier.source.name}'" if classifier.source else "the model of model.config_overrides"
    was_training = classifier.model.training
    try:
        logits = classifier.model.eval()(**batch.inputs).logits
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{model_name} fails on {row}, of {split.lengths[index]} tokens: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; correct the sizes in its config.json or in "
            "model.config_overrides, or lower data.max_length"
        ) from error
    finally:
        classifier.model.train(was_training)
    if not logits.isfinite().all():
        raise ModelError(
            f"{model_name} gives logits that are not finite for {row}, before any training; correct its config.json, "
            "or set model.dtype: float32"
        )


@contextmanager
def frozen_layers_cached(context: RunContext, inputs: RunInputs, *, write: bool = True) -> Iterator[RunInputs]:
    """Yield the inputs with the outputs of the frozen layers cached, if the recipe sets `cache_frozen_layers`.

    Args:
        write: False: only check that the outputs can be cached.
    """
    recipe = context.recipe
    if not recipe.training.cache_frozen_layers:
        yield inputs
        return
    used_in_training = ["train"] if recipe.evaluation.eval_strategy == "no" else ["train", "validation"]
    with cached_frozen_layers(
        inputs.classifier,
        {name: inputs.splits[name] for name in used_in_training if name in inputs.splits},
        CacheSettings(recipe.training.freeze_layers, recipe.evaluation.per_device_eval_batch_size, write),
        accelerator=context.accelerator,
        notify=context.print_line,
    ) as cached:
        yield replace(inputs, splits=inputs.splits | cached)


def layers_compiled(context: RunContext, classifier: Classifier) -> AbstractContextManager[int | None]:
    """Return a context in which the layers that training runs are compiled, if the recipe sets `torch_compile`."""
    training = context.recipe.training
    if not training.torch_compile:
        return nullcontext()
    first_layer = training.freeze_layers if training.cache_frozen_layers else 0
    return compiled_layers(classifier.base, context.accelerator.device, first=first_layer)
