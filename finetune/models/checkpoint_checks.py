"""Checks of a checkpoint before training: its weights, its sizes, its tokenizer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.models.attention_sites import unpruned_sites


def check_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ModelError if the tokenizer has token ids for which the model has no embedding."""
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        return
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= table.num_embeddings:
        raise ModelError(
            f"the tokenizer of '{name}' has ids up to {highest} ('{token}'), but the model has embeddings for ids 0 "
            f"to {table.num_embeddings - 1}; use the tokenizer that belongs to these weights"
        )


def new_parameters(info: Mapping[str, Any]) -> list[str]:
    """Return the names of parameters that the checkpoint did not fill, from the loader's report."""
    return sorted({*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])})


def missing_encoder_weights(model: PreTrainedModel, new: Iterable[str]) -> list[str]:
    """Return the new parameters that belong to the encoder, in its order, without its pooler and the head."""
    new = set(new)
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    not_encoder = (f"{prefix}pooler.",) if prefix else ("pooler.", "classifier.")
    return [
        name
        for name in model.state_dict()
        if name in new and name.startswith(prefix) and not name.startswith(not_encoder)
    ]


def disable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Turn off gradient checkpointing, which config.json can turn on: only the recipe decides how to train."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            setattr(module, "gradient_checkpointing", False)  # noqa: B010  (not a field of Module)


def check_has_heads(model: PreTrainedModel, name: str) -> None:
    """Raise ModelError if the model has no layer or no head, or lacks a module that its family has."""
    sites = unpruned_sites(model)
    if not sites or sites[0].num_heads < 1:
        raise ModelError(
            f"'{name}' has {len(sites)} layers{f' of {sites[0].num_heads} heads' if sites else ''} by its config, but "
            "at least one layer with one head is needed; correct its config.json, or model.config_overrides"
        )


def unused_layers(model: PreTrainedModel, info: Mapping[str, Any]) -> str:
    """Return a note if the checkpoint has weights for more layers than its config, or "".

    A weight counts as a layer's if the model has the same name with another number; a head's parts may be numbered too.
    """

    def without_numbers(name: str) -> str:
        return re.sub(r"\.\d+\.", ".0.", name.removeprefix(f"{model.base_model_prefix}."))

    known = {without_numbers(name) for name in model.state_dict() if re.search(r"\.\d+\.", name)}
    unused = sorted(name for name in info["unexpected_keys"] if without_numbers(name) in known)
    if not unused:
        return ""
    return f"The checkpoint has weights for layers that its config.json does not list: {first_and_count(unused)}."


def first_and_count(names: Sequence[str]) -> str:
    """Return the first name and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def check_encoder_weights(model: PreTrainedModel, new: Sequence[str], name: str) -> None:
    """Raise ModelError if weights of the encoder itself are among the new parameters."""
    missing = missing_encoder_weights(model, new)
    if not missing:
        return
    raise ModelError(
        f"model '{name}' has no weights for {first_and_count(missing)}: it is not a checkpoint of a "
        f"'{model.config.model_type}' encoder, or its sizes differ from its config.json; correct it, or initialize "
        "these at random with model.allow_missing_weights: true"
    )


def check_finite_weights(model: nn.Module, name: str) -> None:
    """Raise ModelError if a loaded weight is NaN or infinite."""
    bad = [(key, p) for key, p in model.named_parameters() if p.is_floating_point() and not _is_finite(p)]
    if bad:
        key, weight = bad[0]
        count = int((~weight.isfinite()).sum())
        dtype = str(weight.dtype).removeprefix("torch.")
        more = f", and {len(bad) - 1} more weights have such values" if len(bad) > 1 else ""
        wider = "" if weight.dtype == torch.float32 else ", or set model.dtype: float32 if they are only too large"
        raise ModelError(
            f"model '{name}' has {count} values in {key} that are not finite in {dtype}{more}: its weights are "
            f"damaged; use another checkpoint{wider}"
        )


def _is_finite(weight: Tensor) -> bool:
    """Return whether all values are finite. Their sum is, unless one is not; it is found without another tensor."""
    return bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def check_fits_in_memory(parameters: int, name: str) -> None:
    """Raise ModelError if this many parameters do not fit in this machine's memory."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * parameters > memory:
        raise ModelError(
            f"'{name}' has {parameters:,} parameters by its config, more than fit in this machine's "
            f"{memory / 2**30:.0f} GB; correct the sizes in its config.json, or model.config_overrides"
        )


def checksum(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return a checksum of named tensors, in order."""
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def base_checksum(model: nn.Module, trained: Sequence[str]) -> str:
    """Return a checksum of the base model's parameters, without those of the modules in `trained`."""
    return checksum((name, p) for name, p in model.named_parameters() if name.rpartition(".")[0] not in set(trained))
