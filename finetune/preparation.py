"""What a run works on: rows, read and encoded, and the classifier that the recipe describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from finetune.data.encoding import EncodedSplit, word_tokenizer
from finetune.data.prepare import LabelledSplits, encode_splits, read_labelled, summarise, training_texts
from finetune.errors import DataError, ModelError
from finetune.lora import Lora
from finetune.modeling import (
    Classifier,
    Source,
    checkpoint_labels,
    load_tokenizer,
    new_classifier,
    pretrained_classifier,
)
from finetune.recipe import ModelSection, Recipe
from finetune.recipe.problems import NO_VALIDATION
from finetune.results import SplitSummary


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
    """Read the data and build the classifier; the main process first, so that caches are written once."""
    with accelerator.main_process_first():
        splits = read_labelled(
            recipe.data,
            recipe.task.problem_type,
            recipe.task.label_names,
            recipe.seed,
            suggested=checkpoint_labels(source_of(recipe.model)) if recipe.model.model_name_or_path else None,
        )
        check_splits(recipe, splits.raw)
        classifier = build(recipe, splits)
        encoded = encode_splits(splits, classifier.tokenizer, recipe.data)
    return Material(classifier, encoded, summarise(splits, encoded, recipe.data))


def check_splits(recipe: Recipe, splits: Mapping[str, object]) -> None:
    """Raise DataError if a stage will ask for a split that there is not."""
    heads = recipe.head_importance
    if recipe.evaluation.eval_strategy != "no" and "validation" not in splits:
        raise DataError(
            f"there are no validation rows to evaluate on; {NO_VALIDATION}, or set evaluation.eval_strategy: no"
        )
    if heads is not None and heads.split not in splits:
        raise DataError(
            f"head_importance.split is {heads.split}, but there are no such rows; {NO_VALIDATION}, or name another"
        )


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


def build(recipe: Recipe, splits: LabelledSplits) -> Classifier:
    """Return the recipe's classifier, ready to be trained."""
    model, adapters = recipe.model, recipe.peft
    task: dict[str, Any] = {
        "label_names": splits.label_names,
        "problem_type": recipe.task.problem_type,
        "max_length": recipe.data.max_length,
    }
    if model.model_name_or_path is not None:
        source = source_of(model)
        lora = None
        if adapters is not None:
            lora = Lora(
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
        return pretrained_classifier(
            source,
            load_tokenizer(source),
            **task,
            lora=lora,
            freeze_embeddings=recipe.training.freeze_embeddings,
            freeze_layers=recipe.training.freeze_layers,
        )
    if adapters is not None:
        raise ModelError(
            "peft adapts pretrained weights, but model.model_type builds new ones; remove the peft section"
        )
    assert model.model_type is not None
    words = model.config_overrides.get("vocab_size", 30_000)
    if not isinstance(words, int) or words < 3:
        raise ModelError(f"model.config_overrides.vocab_size is {words}; it counts words, of which two are reserved")
    tokenizer = word_tokenizer(training_texts(splits, recipe.data), words)
    return new_classifier(model.model_type, model.config_overrides, tokenizer, **task)
