"""Build a classifier for training: encoder, classification head, LoRA adapters.

In addition to the adapters, every parameter that the checkpoint did not contain must be trained and saved. The loader
reports their names, so no list of module names is kept here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.models import toy_classifier
from finetune.models.attention_sites import attention_sites
from finetune.models.checkpoint_checks import (
    base_checksum,
    check_encoder_weights,
    check_finite_weights,
    check_fits_in_memory,
    check_has_heads,
    check_token_ids,
    disable_gradient_checkpointing,
    first_and_count,
    missing_encoder_weights,
    new_parameters,
    unused_layers,
)
from finetune.models.checkpoint_config import check_entries, check_max_length, check_not_adapter
from finetune.models.classification_head import (
    AlignedHead,
    align_head_to_labels,
    meta_device_classifier,
    random_classifier,
)
from finetune.models.classifier import Classifier
from finetune.models.freezing import NOTHING_FROZEN, Freezing, freeze, keep_float32
from finetune.models.lora import Lora, add_lora, initial_adapters, projection_weights
from finetune.models.pooling import HEAD, check_pooling, pooling_of, set_pooling
from finetune.models.pretrained import Source, load_config, load_pooling, model_load_errors
from finetune.models.pruned_model import classifier_class
from finetune.progress import stage


@dataclass(frozen=True)
class Labels:
    """What a classifier predicts.

    Attributes:
        names: label names in the order of the logits.
        problem_type: single_label_classification, multi_label_classification or regression.
    """

    names: Sequence[str]
    problem_type: str

    def config_entries(self) -> dict[str, Any]:
        """Return the entries of a transformers config for these labels."""
        id2label = dict(enumerate(self.names))
        return {
            "num_labels": len(self.names),
            "id2label": id2label,
            "label2id": {name: index for index, name in id2label.items()},
            "problem_type": self.problem_type,
        }

    def labeled(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return a copy of the config with these labels."""
        config = copy.deepcopy(config)
        for key, value in self.config_entries().items():
            setattr(config, key, value)
        return config


def pretrained_classifier(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    *,
    max_length: int,
    lora: Lora | None = None,
    freezing: Freezing = NOTHING_FROZEN,
) -> Classifier:
    """Return a classifier on a pretrained encoder; weights that the checkpoint lacks are initialized at random.

    Without `lora` all weights are float32, and all are trained except those of `freezing`. With `lora` the
    checkpoint's weights have the dtype of `source`, and the trained weights (adapters, classification head and weights
    that the checkpoint lacks) are float32; `freezing` has no effect.

    Raises:
        ModelError: the checkpoint is not found or cannot be read, lacks weights of the encoder itself (unless
            `source.allow_missing_weights`), does not match its tokenizer or config, takes fewer tokens than
            `max_length`, or has no projection for a requested adapter.
    """
    notes = []
    if lora is None and source.dtype != "float32":
        notes.append(
            f"model.dtype {source.dtype} applies to frozen weights under adapters; without adapters weights are "
            "float32. For faster training set training.mixed_precision: bf16."
        )
        source = replace(source, dtype="float32")
    model, new, head, load_notes = _load(source, labels)
    check_max_length(model.config, tokenizer.model_max_length, max_length, source.name)
    check_token_ids(model, tokenizer, source.name)
    if pooling_of(model.config) == "cls" and tokenizer.padding_side == "left":
        raise ModelError(
            f"model.pooling cls cannot be used: the tokenizer of '{source.name}' pads on the left, so the first token "
            "of a row can be padding; set it to mean or head"
        )
    notes += load_notes
    if lora is None:
        freeze(model, freezing)
        random = [name for name in missing_encoder_weights(model, new) if not model.get_parameter(name).requires_grad]
        if random:
            raise ModelError(
                f"model '{source.name}' has no weights for {random[0]}, which is frozen and would stay random; lower "
                "training.freeze_layers or use another checkpoint"
            )
        return Classifier(model, tokenizer, max_length, source, tuple(new), notes=tuple(notes))
    saved = [*new, *head.reordered]  # saved with the adapter: the base checkpoint has them in its own label order
    saved_modules = sorted({name.rpartition(".")[0] for name in saved})
    keep_float32(model, saved_modules)
    checksum, before = base_checksum(model, saved_modules), projection_weights(model, attention_sites(model))
    with stage("adding adapters"):  # PiSSA and OLoRA factorize every adapted weight
        adapted = add_lora(model, lora, saved)
    initial = initial_adapters(model, before)
    return Classifier(adapted, tokenizer, max_length, source, tuple(new), checksum, initial, tuple(notes))


def _load(source: Source, labels: Labels) -> tuple[PreTrainedModel, list[str], AlignedHead, list[str]]:
    """Load a checkpoint as a classifier for these labels.

    Returns:
        The model, the names of its new parameters, what was done to its classification head, and notes.
    """
    check_not_adapter(source.name)
    config = load_config(source)
    set_pooling(config, load_pooling(source)[0])
    with stage("loading model"), model_load_errors(source):
        wider = meta_device_classifier(
            config, num_labels=len(labels.names) + 1, trust_remote_code=source.trust_remote_code
        )
        check_fits_in_memory(sum(p.numel() for p in wider.parameters()), source.name)
        model, info = classifier_class(config).from_pretrained(
            source.location(),
            config=labels.labeled(config),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.loading_options(),
        )
        with TemporaryDirectory() as folder:  # fail now, not after training, if the config cannot be saved
            model.config.save_pretrained(folder)
    disable_gradient_checkpointing(model)
    new = new_parameters(info)
    check_has_heads(model, source.name)
    missing = missing_encoder_weights(model, new)
    if not source.allow_missing_weights:
        check_encoder_weights(model, new, source.name)
    check_finite_weights(model, source.name)
    head = align_head_to_labels(model, wider, config, list(labels.names), info)
    notes = [note for note in (head.note, unused_layers(model, info)) if note]
    if missing:
        notes.append(f"The checkpoint has no weights for {first_and_count(missing)}: initialized at random.")
    return model, sorted({*new, *head.reinitialized}), head, notes


def new_classifier(
    model_type: str,
    config_overrides: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    *,
    max_length: int,
    pooling: str = HEAD,
) -> Classifier:
    """Return a classifier built from a config, with random weights.

    Raises:
        ModelError: the model type or one of the overrides is unknown, the sizes are inconsistent, or the type has no
            such pooling.
    """
    toy_classifier.register()
    try:
        defaults = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ModelError(
            f"model.model_type '{model_type}' is unknown to transformers {transformers.__version__}"
        ) from error
    unknown = sorted(key for key in config_overrides if not hasattr(defaults, key))
    if unknown:
        raise ModelError(f"model.config_overrides: a {model_type} config has no {', '.join(unknown)}; remove or rename")
    check_entries(config_overrides, "model.config_overrides")
    check_pooling(pooling, model_type)
    sizes = {**config_overrides, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    try:
        config = AutoConfig.for_model(model_type, **sizes, **labels.config_entries())
        set_pooling(config, pooling)
        empty = meta_device_classifier(config, num_labels=len(labels.names))
        check_fits_in_memory(sum(p.numel() for p in empty.parameters()), model_type)
        model = random_classifier(config)
    except ModelError:
        raise
    except Exception as error:  # the library may raise anything for sizes that it does not expect
        raise ModelError(
            f"model.config_overrides: a {model_type} cannot be built: {' '.join(str(error).split())[:300]}"
        ) from error
    check_has_heads(model, model_type)
    check_max_length(model.config, tokenizer.model_max_length, max_length, model_type)
    names = tuple(name for name, _ in model.named_parameters())
    return Classifier(model, tokenizer, max_length, None, names)
