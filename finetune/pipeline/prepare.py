"""What a run works on: rows, read and encoded, and the classifier that the recipe describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.batching import load_batches
from finetune.data.splits import LabeledSplits, encode_splits, read_labeled
from finetune.data.tokenization import EncodedSplit, word_tokenizer
from finetune.distributed import local_main_process_first
from finetune.errors import ModelError
from finetune.models.activation_cache import cached_frozen_layers
from finetune.models.building import new_classifier, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.compilation import compiled_layers
from finetune.models.lora import Lora
from finetune.models.output_bias import init_output_bias
from finetune.models.pretrained import Source, checkpoint_labels, load_tokenizer
from finetune.out_of_memory import is_out_of_memory
from finetune.recipe import ModelSection, PeftSection, Recipe
from finetune.recipe.validation import NO_VALIDATION
from finetune.runs.results import SplitSummary


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


def prepare(recipe: Recipe, accelerator: Accelerator) -> Material:
    """Read the data and build the classifier; one process of a machine first, so that its caches are written once."""

    def work() -> Material:
        labeled = read_labeled(
            recipe.data,
            recipe.task.problem_type,
            recipe.task.label_names,
            recipe.seed,
            suggested=checkpoint_labels(source_of(recipe.model)) if recipe.model.model_name_or_path else None,
            required=required_splits(recipe),
        )
        classifier = build(recipe, labeled)
        splits = encode_splits(labeled, classifier.tokenizer, recipe.data.max_length)
        init_output_bias(classifier, splits.encoded["train"].labels)
        try_longest_row(classifier, splits.encoded)
        return Material(classifier, splits.encoded, splits.summaries)

    return local_main_process_first(accelerator, work)


@torch.no_grad()
def try_longest_row(classifier: Classifier, splits: Mapping[str, EncodedSplit]) -> None:
    """Put the longest of all rows to the classifier once, before anything is written.

    Raises:
        ModelError: the model fails on it.
    """
    if str(classifier.base.config._attn_implementation).startswith("flash"):  # for GPUs, where the model is not yet
        return
    name, split = max(splits.items(), key=lambda item: int(item[1].lengths.max()))
    row = int(split.lengths.argmax())
    (batch,) = load_batches(split, [np.array([row])], classifier.tokenizer, device=torch.device("cpu"))
    what = f"model '{classifier.source.name}'" if classifier.source else "the model of model.config_overrides"
    training = classifier.model.training
    try:
        logits = classifier.model.eval()(**batch.inputs).logits
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{what} fails on {name} row {split.numbers[row]}, of {split.lengths[row]} tokens: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; correct the sizes in its config.json or in "
            "model.config_overrides, or lower data.max_length"
        ) from error
    finally:
        classifier.model.train(training)
    if not logits.isfinite().all():
        raise ModelError(
            f"{what} gives logits that are not finite for {name} row {split.numbers[row]}, before any training; "
            "correct its config.json, or set model.dtype: float32"
        )


@contextmanager
def frozen_layers_cached(
    recipe: Recipe, material: Material, accelerator: Accelerator, *, tell: Callable[[str], None], write: bool = True
) -> Iterator[Material]:
    """Yield the material with what the frozen layers make of the rows that training goes through, if asked for.

    With `write` false it is only checked that this can be done.
    """
    if not recipe.training.cache_frozen_layers:
        yield material
        return
    repeated = ["train"] if recipe.evaluation.eval_strategy == "no" else ["train", "validation"]
    with cached_frozen_layers(
        material.classifier,
        {name: material.splits[name] for name in repeated if name in material.splits},
        recipe.training.freeze_layers,
        batch_size=recipe.evaluation.per_device_eval_batch_size,
        accelerator=accelerator,
        notify=tell,
        write=write,
    ) as cached:
        yield replace(material, splits=material.splits | cached)


def layers_compiled(
    recipe: Recipe, classifier: Classifier, accelerator: Accelerator
) -> AbstractContextManager[int | None]:
    """Return a context in which the layers that are run in training are compiled, if that was asked for."""
    training = recipe.training
    if not training.torch_compile:
        return nullcontext()
    first = training.freeze_layers if training.cache_frozen_layers else 0
    return compiled_layers(classifier.base, accelerator.device, first=first)


def required_splits(recipe: Recipe) -> dict[str, str]:
    """Return the splits that later stages need, each with the error message if it is missing."""
    required = {}
    if recipe.evaluation.eval_strategy != "no":
        required["validation"] = (
            f"there are no validation rows to evaluate on; {NO_VALIDATION}, or set evaluation.eval_strategy: no"
        )
    heads = recipe.head_importance
    if heads is not None and heads.split not in required:
        required[heads.split] = (
            f"head_importance.split is {heads.split}, but there are no such rows; {NO_VALIDATION}, or name another"
        )
    return required


def source_of(model: ModelSection) -> Source:
    """Return the recipe's checkpoint."""
    assert model.model_name_or_path is not None
    return Source(
        model.model_name_or_path,
        model.revision,
        model.dtype,
        model.attn_implementation,
        model.use_safetensors,
        model.trust_remote_code,
    )


def lora_of(adapters: PeftSection) -> Lora:
    """Return the recipe's adapters."""
    return Lora(
        r=adapters.r,
        lora_alpha=adapters.lora_alpha,
        lora_dropout=adapters.lora_dropout,
        roles=adapters.target_modules,
        use_rslora=adapters.use_rslora,
        use_dora=adapters.use_dora,
        init_lora_weights=adapters.init_lora_weights,
        layers=adapters.layers_to_transform,
        rank_pattern=adapters.rank_pattern,
    )


def build(recipe: Recipe, splits: LabeledSplits) -> Classifier:
    """Return the recipe's classifier, ready to be trained."""
    model = recipe.model
    if model.model_name_or_path is not None:
        source = source_of(model)
        return pretrained_classifier(
            source,
            load_tokenizer(source),
            label_names=splits.label_names,
            problem_type=recipe.task.problem_type,
            max_length=recipe.data.max_length,
            lora=None if recipe.peft is None else lora_of(recipe.peft),
            freeze_embeddings=recipe.training.freeze_embeddings,
            freeze_layers=recipe.training.freeze_layers,
            allow_missing_weights=model.allow_missing_weights,
        )
    if recipe.peft is not None:
        raise ModelError(
            "peft adapts pretrained weights, but model.model_type builds new ones; remove the peft section"
        )
    assert model.model_type is not None
    words = model.config_overrides.get("vocab_size", 30_000)
    if not isinstance(words, int) or words < 3:
        raise ModelError(f"model.config_overrides.vocab_size is {words}; it counts words, of which two are reserved")
    tokenizer = word_tokenizer(splits.training_texts(), words)
    return new_classifier(
        model.model_type,
        model.config_overrides,
        tokenizer,
        label_names=splits.label_names,
        problem_type=recipe.task.problem_type,
        max_length=recipe.data.max_length,
    )
