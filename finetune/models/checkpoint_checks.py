"""What is checked of a checkpoint before anything is trained on it: its weights, its tokenizer, its lengths.

S tokens
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.models.architectures import attention_sites

ALLOW = "model.allow_missing_weights: true"


def _behind_padding_id(config: Any) -> int:
    return config.pad_token_id + 1 if isinstance(config.pad_token_id, int) else 0


def _esm_positions(config: Any) -> int:
    return _behind_padding_id(config) if config.position_embedding_type == "absolute" else 0


# Model type -> how many of max_position_embeddings come before the first token's: these models number positions from
# the padding id on. MPNet's is fixed at 1.
_POSITIONS_BEFORE: dict[str, Callable[[Any], int]] = {
    **dict.fromkeys(
        (
            "camembert",
            "data2vec-text",
            "ibert",
            "roberta",
            "roberta-prelayernorm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
        _behind_padding_id,
    ),
    "esm": _esm_positions,
    "mpnet": lambda config: 2,
}


def longest_input(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model with this config takes at most; None: its config sets no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    before = _POSITIONS_BEFORE.get(config.model_type)
    return positions - (before(config) if before else 0)


def refuse_too_long(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int, name: str) -> None:
    """Raise ModelError if rows of `max_length` tokens are longer than the model or its tokenizer takes."""
    limit = longest_input(config)
    most = min(max_length if limit is None else limit, tokenizer.model_max_length)
    if most < 4:
        positions = getattr(config, "max_position_embeddings", None)
        raise ModelError(
            f"'{name}' takes {most} tokens (max_position_embeddings {positions} in its config, model_max_length of its "
            f"tokenizer {tokenizer.model_max_length}); correct its config.json, or model.config_overrides"
        )
    if max_length > most:
        raise ModelError(f"data.max_length is {max_length}, but '{name}' takes {most} tokens; lower data.max_length")


def refuse_unknown_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
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
    """Return the names of parameters that a checkpoint did not fill, from the loader's own report."""
    return sorted({*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])})


def missing_encoder_weights(model: PreTrainedModel, new: Iterable[str]) -> list[str]:
    """Return which of the new parameters are the encoder's own, in its order: not its pooler's or the head's above."""
    new = set(new)
    prefix = f"{model.base_model_prefix}."
    parts = prefix if hasattr(model, model.base_model_prefix) else ""
    pooler, head = f"{parts}pooler.", () if parts else ("classifier.",)
    return [
        name
        for name in model.state_dict()
        if name in new and name.startswith(parts) and not name.startswith((pooler, *head))
    ]


def keep_activations(model: PreTrainedModel) -> None:
    """Turn off gradient checkpointing, which an entry of config.json turns on: how to train is the recipe's to say."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            setattr(module, "gradient_checkpointing", False)  # noqa: B010  (no field of Module)


def refuse_no_heads(model: PreTrainedModel, name: str) -> None:
    """Raise ModelError if a model has no layer or no head, or is not as the family's table says."""
    sites = attention_sites(model)
    if not sites or sites[0].num_heads < 1:
        raise ModelError(
            f"'{name}' has {len(sites)} layers by its config{f' of {sites[0].num_heads} heads' if sites else ''}; it "
            "needs one layer and one head: correct its config.json, or model.config_overrides"
        )


def unused_layers(model: PreTrainedModel, info: Mapping[str, Any]) -> str:
    """Return a note if a checkpoint holds weights of numbered layers that its config leaves out, or "".

    Those of layers are named as in the layers that the model has, but for the number: a head's may be numbered too.
    """

    def anywhere(name: str) -> str:
        return re.sub(r"\.\d+\.", ".0.", name.removeprefix(f"{model.base_model_prefix}."))

    known = {anywhere(name) for name in model.state_dict() if re.search(r"\.\d+\.", name)}
    unused = sorted(name for name in info["unexpected_keys"] if anywhere(name) in known)
    if not unused:
        return ""
    return f"The checkpoint holds weights of layers that its config.json leaves out: {and_more(unused)}."


def and_more(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def refuse_missing(model: PreTrainedModel, new: Sequence[str], name: str) -> None:
    """Raise ModelError if weights of the encoder itself are among the new parameters."""
    missing = missing_encoder_weights(model, new)
    if not missing:
        return
    raise ModelError(
        f"model '{name}' holds no weights for {and_more(missing)}: it is not a checkpoint of a "
        f"'{model.config.model_type}' encoder, or its sizes differ from its config.json; correct it, or draw these at "
        f"random with {ALLOW}"
    )


def refuse_not_finite(model: nn.Module, name: str) -> None:
    """Raise ModelError if a weight that was loaded is NaN or infinite."""
    bad = [(key, p) for key, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if bad:
        key, weight = bad[0]
        count = int((~weight.isfinite()).sum())
        dtype = str(weight.dtype).removeprefix("torch.")
        more = f", and so have {len(bad) - 1} more weights" if len(bad) > 1 else ""
        wider = "" if weight.dtype == torch.float32 else ", or set model.dtype: float32 if they are only too large"
        raise ModelError(
            f"model '{name}' has {count} values in {key} that are not finite in {dtype}{more}: its weights are "
            f"damaged; use another checkpoint{wider}"
        )


def refuse_too_large(parameters: int, name: str) -> None:
    """Raise ModelError if so many parameters do not fit in this machine's memory."""
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
    """Return a checksum of a base model's parameters, without those of the modules `trained` whole with the adapter."""
    return checksum((name, p) for name, p in model.named_parameters() if name.rpartition(".")[0] not in set(trained))
