"""The classification head of a fine-tuned checkpoint, whose labels may stand in another order, or be others.

C classes
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from finetune.models.checkpoint_checks import missing_encoder_weights
from finetune.models.pretrained import label_names_of

_MOST_NAMED = 5


def empty_classifier(config: PreTrainedConfig, *, num_labels: int, trust_remote_code: bool = False) -> nn.Module:
    """Return a classifier with this config whose parameters have shapes and no memory; nothing is drawn at random."""
    config = copy.deepcopy(config)
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: nn.Module = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    return model


@dataclass(frozen=True)
class Head:
    """What became of a checkpoint's classification head.

    Attributes:
        reordered: names of parameters whose rows are in another order now.
        drawn: names of parameters that were drawn again.
        note: what users must know, or "".
    """

    reordered: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    note: str = ""


def fit_head(
    model: PreTrainedModel,
    wider: nn.Module,
    before: PreTrainedConfig,
    label_names: Sequence[str],
    info: Mapping[str, Any],
) -> Head:
    """Put the rows of a checkpoint's classification head into the order of `label_names`, or draw a new head.

    The rows are put in order where the checkpoint names the same labels. Where it names others, or none, the head is
    drawn again: what it predicts is not known to be what is asked for now.

    Args:
        model: the classifier as it was loaded, for `label_names`.
        wider: the same for one label more; parameters of another shape there have a row for each label.
        before: the checkpoint's own config.
        info: the loader's report.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    encoder = set(missing_encoder_weights(model, shapes))  # whose shapes differ where heads were cut out
    rows = [name for name, p in wider.named_parameters() if name not in encoder and p.shape != shapes[name]]
    if any(item[0] in rows for item in info["mismatched_keys"]):
        return Head(note=f"The classification head is new: the checkpoint's is for {_described(before)}.")
    kept = [name for name in rows if name not in info["missing_keys"]]
    if not kept:
        return Head()
    if model.config.problem_type == "regression" and before.problem_type in (None, "regression"):
        return Head()
    order = _order(before, label_names)
    if order == list(range(len(label_names))):
        return Head()
    if order is not None and all(model.get_parameter(name).shape[0] == len(order) for name in kept):
        with torch.no_grad():
            for name in kept:
                parameter = model.get_parameter(name)
                parameter.copy_(parameter[order].clone())
        return Head(
            reordered=tuple(kept),
            note=f"The rows of the checkpoint's classification head, for {_described(before)}, were put in order.",
        )
    _draw_again(model, kept)
    return Head(
        drawn=tuple(kept),
        note=f"The classification head is new: the checkpoint's is for {_described(before)}, and not for "
        f"{_listed(label_names)}.",
    )


def _order(before: PreTrainedConfig, now: Sequence[str]) -> list[int] | None:
    """Return where each of the labels stood before, or None if these are not the same labels.

    Labels without names are named by their ids: `1`, or `LABEL_1` as transformers writes what it predicted.
    """
    names = label_names_of(before)
    ids = range(before.num_labels or 0)
    for known in [names] if names else [[str(index) for index in ids], [f"LABEL_{index}" for index in ids]]:
        if sorted(known) == sorted(now):
            return [known.index(name) for name in now]
    return None


def _draw_again(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Draw parameters as the family draws new ones."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    with torch.no_grad():
        for module in map(model.get_submodule, modules):
            for parameter in module.parameters(recurse=False):
                vars(parameter).pop("_is_hf_initialized", None)  # the loader's mark, by which it would be left as it is
            model._init_weights(module)


def _described(config: PreTrainedConfig) -> str:
    names = label_names_of(config)
    return f"{config.num_labels} labels without names" if names is None else f"the labels {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
