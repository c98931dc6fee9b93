"""Adapt the classification head of a fine-tuned checkpoint to the labels of a new task.

The checkpoint may have the same labels in another order, or other labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from finetune.errors import ModelError
from finetune.models.checkpoint_checks import missing_encoder_weights
from finetune.models.initialization import initialize_again
from finetune.models.pooled_classifier import pooled_class
from finetune.models.pooling import HEAD, pooling_of
from finetune.models.pretrained import label_names_of

_MAX_NAMES = 5  # label names in a note


def meta_device_classifier(config: PreTrainedConfig, *, num_labels: int, trust_remote_code: bool = False) -> nn.Module:
    """Return a classifier with this config on the meta device: parameters have shapes but no values."""
    config = copy.deepcopy(config)
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return random_classifier(config, trust_remote_code=trust_remote_code)


def random_classifier(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return an unpruned classifier with this config and random weights."""
    model: PreTrainedModel
    if pooling_of(config) == HEAD:
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    else:
        model = pooled_class(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])._from_config(config)
    return model


def output_layer(model: nn.Module, num_labels: int) -> nn.Linear:
    """Return the linear layer that computes the logits: the last one with an output for each label.

    Args:
        model: a classifier, with or without adapters.

    Raises:
        ModelError: the model has no such layer.
    """
    layer = last_linear_layer(model, num_labels)
    if layer is None:
        raise ModelError(
            f"{type(model).__name__} has no linear layer with {num_labels} outputs that computes the logits, which "
            "training.contrastive_weight needs; remove the key"
        )
    return layer


def last_linear_layer(model: nn.Module, num_labels: int) -> nn.Linear | None:
    """Return the last linear layer with so many outputs, or None if there is none."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == num_labels
        and ".original_module" not in name  # peft's unused copy of a layer that is trained in full
    ]
    return layers[-1] if layers else None


@dataclass(frozen=True)
class AlignedHead:
    """What `align_head_to_labels` changed.

    Attributes:
        reordered: names of parameters whose rows were reordered.
        reinitialized: names of parameters that were initialized again at random.
        note: what the user should know, or "".
    """

    reordered: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    note: str = ""


def align_head_to_labels(
    model: PreTrainedModel,
    wider: nn.Module,
    checkpoint_config: PreTrainedConfig,
    label_names: Sequence[str],
    info: Mapping[str, Any],
) -> AlignedHead:
    """Reorder the rows of a checkpoint's classification head to match `label_names`, or initialize a new head.

    Rows are reordered if the checkpoint has the same label names. If it has others, or none, the head is initialized
    at random, because its outputs may mean something else.

    Args:
        model: the loaded classifier for `label_names`.
        wider: the same classifier for one more label; parameters whose shape differs have one row per label.
        checkpoint_config: the checkpoint's own config.
        info: the loader's report.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    encoder = set(missing_encoder_weights(model, shapes))  # their shapes differ too if parts were pruned
    per_label = [name for name, p in wider.named_parameters() if name not in encoder and p.shape != shapes[name]]
    if any(item[0] in per_label for item in info["mismatched_keys"]):
        return AlignedHead(
            note=f"The classification head is new: the checkpoint's is for {_labels(checkpoint_config)}."
        )
    loaded = [name for name in per_label if name not in info["missing_keys"]]
    if not loaded:
        return AlignedHead()
    if model.config.problem_type == "regression" and checkpoint_config.problem_type in (None, "regression"):
        return AlignedHead()
    order = _order(checkpoint_config, label_names)
    if order == list(range(len(label_names))):
        return AlignedHead()
    if order is not None and all(model.get_parameter(name).shape[0] == len(order) for name in loaded):
        with torch.no_grad():
            for name in loaded:
                parameter = model.get_parameter(name)
                parameter.copy_(parameter[order].clone())
        return AlignedHead(
            reordered=tuple(loaded),
            note=f"The rows of the checkpoint's classification head, for {_labels(checkpoint_config)}, were reordered.",
        )
    initialize_again(model, map(model.get_submodule, dict.fromkeys(name.rpartition(".")[0] for name in loaded)))
    return AlignedHead(
        reinitialized=tuple(loaded),
        note=f"The classification head is new: the checkpoint's is for {_labels(checkpoint_config)}, not for "
        f"{_listed(label_names)}.",
    )


def _order(checkpoint_config: PreTrainedConfig, label_names: Sequence[str]) -> list[int] | None:
    """Return the checkpoint's row for each label, or None if its labels are others.

    Labels without names are matched by their ids: `1`, or `LABEL_1` as transformers prints predictions.
    """
    names = label_names_of(checkpoint_config)
    ids = range(checkpoint_config.num_labels or 0)
    candidates = [names] if names else [[str(index) for index in ids], [f"LABEL_{index}" for index in ids]]
    for candidate in candidates:
        if sorted(candidate) == sorted(label_names):
            return [candidate.index(name) for name in label_names]
    return None


def _labels(config: PreTrainedConfig) -> str:
    names = label_names_of(config)
    return f"{config.num_labels} labels without names" if names is None else f"the labels {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
