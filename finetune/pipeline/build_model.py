"""Build the classifier that a recipe describes."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from finetune.data.splits import LabeledSplits, long_text_of
from finetune.data.tokenization import word_tokenizer
from finetune.errors import ModelError
from finetune.models.building import Labels, new_classifier, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing
from finetune.models.lora import Lora
from finetune.models.pooling import HEAD, pooling_of
from finetune.models.pretrained import Source, load_pooling, load_tokenizer
from finetune.models.reinitialized_layers import reinit_top_layers
from finetune.recipe.schema import ModelSection, PeftSection, Recipe

_DEFAULT_VOCAB_SIZE = 30_000


def build_classifier(recipe: Recipe, splits: LabeledSplits) -> Classifier:
    """Return the recipe's classifier for the labels of these splits, before training."""
    build = _build_untrained if recipe.model.model_name_or_path is None else _build_pretrained
    classifier = build(recipe, splits)
    return replace(classifier, text_columns=tuple(splits.text_columns), long_text=long_text_of(recipe.data))


def _build_pretrained(recipe: Recipe, splits: LabeledSplits) -> Classifier:
    """Return a classifier on the recipe's checkpoint."""
    source = checkpoint_source(recipe.model)
    classifier = pretrained_classifier(
        source,
        load_tokenizer(source, pairs=len(splits.text_columns) == 2),
        Labels(splits.label_names, recipe.task.problem_type),
        max_length=recipe.data.max_length,
        lora=None if recipe.peft is None else lora_settings(recipe.peft),
        freezing=Freezing(recipe.training.freeze_embeddings, recipe.training.freeze_layers),
    )
    return reinit_top_layers(classifier, recipe.training.reinit_layers)


def _build_untrained(recipe: Recipe, splits: LabeledSplits) -> Classifier:
    """Return a classifier with random weights, and a tokenizer of the words in the training rows."""
    model = recipe.model
    if recipe.peft is not None:
        raise ModelError(
            "peft: adapters need pretrained weights, but model.model_type builds a new model; remove the peft section"
        )
    assert model.model_type is not None
    return new_classifier(
        model.model_type,
        model.config_overrides,
        new_word_tokenizer(model, splits),
        Labels(splits.label_names, recipe.task.problem_type),
        max_length=recipe.data.max_length,
        pooling=HEAD if model.pooling == "auto" else model.pooling,
    )


def new_word_tokenizer(model: ModelSection, splits: LabeledSplits) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a new model, which knows the words of the training rows."""
    vocab_size = model.config_overrides.get("vocab_size", _DEFAULT_VOCAB_SIZE)
    if not isinstance(vocab_size, int) or vocab_size < 3:
        raise ModelError(
            f"model.config_overrides.vocab_size is {vocab_size}; it must be an integer of at least 3, as two tokens "
            "are reserved"
        )
    return word_tokenizer(splits.training_texts(), vocab_size)


def with_pooling(recipe: Recipe, classifier: Classifier) -> tuple[Recipe, str]:
    """Return the recipe with the pooling of its classifier, and a line with the reason; "" if the recipe names it."""
    pooling, line = pooling_of(classifier.base.config), ""
    if recipe.model.pooling == "auto" and recipe.model.model_name_or_path is not None:
        line = f"model.pooling: {pooling} ({load_pooling(checkpoint_source(recipe.model))[1]})."
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"pooling": pooling})}), line


def checkpoint_source(model: ModelSection) -> Source:
    """Return where the recipe's checkpoint is and how to load it."""
    assert model.model_name_or_path is not None
    return Source(
        model.model_name_or_path,
        model.revision,
        model.dtype,
        model.attn_implementation,
        model.use_safetensors,
        model.trust_remote_code,
        model.allow_missing_weights,
        model.pooling,
    )


def lora_settings(adapters: PeftSection) -> Lora:
    """Return the recipe's LoRA settings."""
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
