"""Where a checkpoint is, and what its config.json may contain. Imports no torch, so that `finetune check` can use it.

Files of a checkpoint are untrusted: they never decide whether code is run.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune.errors import ModelError
from finetune.models.architectures import LAYER_COUNT_KEYS, family_of
from finetune.models.pooling import choose_pooling, family_entries

_PACKAGE = "package:"
# Any other name is a repository on the hub with kernels, that is code, which transformers would download and run.
ATTN_IMPLEMENTATIONS = (None, "sdpa", "eager", "flash_attention_2")
_MAX_ENTRY = 10_000_000  # above any vocabulary or length; transformers would fill the memory before it fails
_MAX_LAYERS = 1000
_MIN_TOKENS = 4  # a model that takes fewer is not usable
# Entries that the table of architectures reads, where config.json may lack them.
_CONFIG_DEFAULTS = {"pad_token_id": None, "position_embedding_type": "absolute"}
FOLDER_FIX = (
    "give a hub id and revision (and go online or fill the cache), a folder with intact config.json, tokenizer "
    "and weights, or package:NAME/PATH"
)


def checkpoint_location(name: str) -> str:
    """Return the hub id or the folder; `package:NAME/PATH` becomes the folder PATH in an installed package.

    Raises:
        ModelError: the package is not installed, or has no such folder.
    """
    if not name.startswith(_PACKAGE):
        return name
    package, _, path = name.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        pip_name = package.replace("_", "-")
        raise ModelError(f"model '{name}': package '{package}' is not installed; run `pip install {pip_name}`")
    if not spec.submodule_search_locations:
        raise ModelError(f"model '{name}': '{package}' is a module without folders; name a package")
    folder = Path(spec.submodule_search_locations[0], path)
    if not folder.is_dir():
        raise ModelError(f"model '{name}': package '{package}' has no folder '{path}'; correct the path")
    return str(folder)


def check_not_adapter(name: str) -> None:
    """Raise ModelError if a folder has an adapter and not a full model."""
    if Path(checkpoint_location(name), "adapter_config.json").is_file():
        raise ModelError(f"model '{name}' is an adapter; write plain weights first with `finetune merge`")


def check_checkpoint(name: str, revision: str, max_length: int, pooling: str = "auto") -> str | None:
    """Check the config of a checkpoint that is on this disk, its limit of tokens and its pooling, without loading it.

    Returns:
        A note if the checkpoint is on the hub and not in the cache, so that nothing was checked; otherwise None.

    Raises:
        ModelError: the checkpoint cannot be used, takes fewer than `max_length` tokens, or has no such pooling.
    """
    check_not_adapter(name)
    entries = _read_config(name, revision)
    if entries is None:
        if Path(checkpoint_location(name)).is_dir():
            raise ModelError(f"model '{name}' has no config.json; {FOLDER_FIX}")
        return f"not checked: model '{name}', because it is not in the cache of the hub"
    check_entries(entries, f"model '{name}': config.json")
    choose_pooling(pooling, str(entries.get("model_type")), entries, partial(read_checkpoint_json, name, revision))
    config, tokenizer_limit = _token_limits(name, revision, entries)
    if config is not None:
        check_max_length(config, tokenizer_limit, max_length, name)
    return None


def chosen_pooling(name: str, revision: str, pooling: str = "auto") -> str | None:
    """Return the pooling of a new classifier on a checkpoint; None if its config.json is not on this disk.

    Raises:
        ModelError: the checkpoint has no such pooling.
    """
    entries = _read_config(name, revision)
    if entries is None:
        return None
    read_json = partial(read_checkpoint_json, name, revision)
    return choose_pooling(pooling, str(entries.get("model_type")), entries, read_json)[0]


def check_new_model(model_type: str, overrides: Mapping[str, Any], max_length: int) -> None:
    """Check the type and the config overrides of a new model.

    Raises:
        ModelError: the type is not supported, an override cannot be used, or the model takes fewer than `max_length`
            tokens.
    """
    family_of(SimpleNamespace(model_type=model_type))
    check_entries(overrides, "model.config_overrides")
    if isinstance(overrides.get("max_position_embeddings"), int):
        # The padding id is that of the tokenizer, which is made from the training rows.
        config = SimpleNamespace(**{**_CONFIG_DEFAULTS, **overrides, "model_type": model_type, "pad_token_id": None})
        check_max_length(config, math.inf, max_length, model_type)


def token_limit(name: str, revision: str) -> float:
    """Return the largest number of tokens that a checkpoint on this disk takes; infinity if none is known."""
    entries = _read_config(name, revision)
    if entries is None:
        return math.inf
    config, tokenizer_limit = _token_limits(name, revision, entries)
    model_limit = None if config is None else max_input_length(config)
    return tokenizer_limit if model_limit is None else min(model_limit, tokenizer_limit)


def check_layer_counts(name: str, revision: str, keys: Mapping[str, int]) -> None:
    """Raise ModelError if a recipe key counts more layers than a checkpoint on this disk has."""
    entries = _read_config(name, revision) or {}
    layers = entries.get("num_hidden_layers", entries.get("n_layers"))  # the name in DistilBERT's config
    if not isinstance(layers, int):
        return
    for key, value in keys.items():
        if value > layers:
            model = f"this '{entries.get('model_type')}' model"
            raise ModelError(f"{key} is {value}, but {model} has {layers} layers; lower it")


def hidden_size(name: str, revision: str) -> int | None:
    """Return the hidden size of a checkpoint on this disk; None if its config.json does not give it."""
    entries = _read_object(name, revision, "config.json") or {}
    size = entries.get("hidden_size", entries.get("dim"))  # the name in DistilBERT's config
    return size if isinstance(size, int) and size > 0 else None


def _token_limits(name: str, revision: str, entries: Mapping[str, Any]) -> tuple[SimpleNamespace | None, float]:
    """Return the entries of config.json if they give the model's limit, and the limit of the tokenizer."""
    tokenizer = _read_object(name, revision, "tokenizer_config.json") or {}
    # Entries of other types are reported when the model is loaded.
    limit: object = tokenizer.get("model_max_length")
    tokenizer_limit = math.inf
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit >= 1:
        tokenizer_limit = limit
    has_positions = isinstance(entries.get("max_position_embeddings"), int | None)
    if not has_positions or not entries.get("model_type") or "auto_map" in entries:
        return None, tokenizer_limit
    return SimpleNamespace(**{**_CONFIG_DEFAULTS, **entries}), tokenizer_limit


def _read_config(name: str, revision: str) -> dict[str, Any] | None:
    """Return the entries of a checkpoint's config.json, as `family_entries` does; None if it is not on this disk."""
    entries = _read_object(name, revision, "config.json")
    return None if entries is None else family_entries(entries, f"model '{name}': config.json")


def _read_object(name: str, revision: str, file: str) -> dict[str, Any] | None:
    """Return a JSON file of a checkpoint as `read_checkpoint_json` does; raise ModelError if it is not an object."""
    content = read_checkpoint_json(name, revision, file)
    if content is not None and not isinstance(content, dict):
        raise ModelError(f"model '{name}': {file} is not a JSON object; {FOLDER_FIX}")
    return content


def read_checkpoint_json(name: str, revision: str, file: str) -> object:
    """Return a JSON file of a checkpoint; None if it has no such file, or is on the hub and not in the cache.

    Raises:
        ModelError: the file cannot be read.
    """
    path: object = Path(checkpoint_location(name), file)
    if not Path(checkpoint_location(name)).is_dir():
        from huggingface_hub import try_to_load_from_cache  # it takes a quarter of a second to import

        try:
            path = try_to_load_from_cache(name, file, revision=revision)
        except ValueError as error:  # the name cannot be that of a model on the hub
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"cannot load model '{name}' (revision {revision}): {reason}; {FOLDER_FIX}") from error
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    try:
        content: object = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model '{name}': {file} cannot be read: {str(error)[:200]}; {FOLDER_FIX}") from error
    return content


def check_entries(entries: Mapping[str, Any], where: str) -> None:
    """Raise ModelError for config entries that run code, fill memory, run forever, or are not supported."""
    if entries.get("model_type") and "auto_map" not in entries:
        family_of(SimpleNamespace(model_type=str(entries["model_type"])))
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if entries.get(key) not in ATTN_IMPLEMENTATIONS:
            raise ModelError(f"{where} has {key} {entries[key]!r}; remove the entry")
    for key in ("quantization_config", "compression_config"):
        if entries.get(key) is not None:
            raise ModelError(
                f"{where} has {key}: training quantized weights is not supported; choose the checkpoint in full "
                "precision, or remove the entry if the weights are in full precision"
            )
    for key, value in entries.items():
        limit = _MAX_LAYERS if key in LAYER_COUNT_KEYS else _MAX_ENTRY
        if isinstance(value, int) and value > limit:
            raise ModelError(f"{where} has {key} {value}, above {limit}; correct the entry")
    labels = entries.get("id2label")
    if labels is not None and (
        not isinstance(labels, dict) or {str(key) for key in labels} != {str(index) for index in range(len(labels))}
    ):
        raise ModelError(
            f"{where} has id2label {str(labels)[:80]}; it must map each id, counted from 0, to a name: correct or "
            "remove the entry"
        )


def max_input_length(config: Any) -> int | None:
    """Return the largest number of tokens that a model with this config takes; None: its config sets no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return None if positions is None else positions - family_of(config).reserved_positions(config)


def check_max_length(config: Any, tokenizer_limit: float, max_length: int, name: str) -> None:
    """Raise ModelError if the model takes fewer than `max_length` tokens.

    Args:
        tokenizer_limit: `model_max_length` of the tokenizer, for a config that sets no limit. A fine-tuned model's
            tokenizer has the length to which texts were cut in training, and the model may take more.
        name: of the model, for the message.
    """
    model_limit = max_input_length(config)
    limit = tokenizer_limit if model_limit is None else model_limit
    if limit < _MIN_TOKENS:
        positions = getattr(config, "max_position_embeddings", None)
        raise ModelError(
            f"'{name}' takes {limit} tokens (max_position_embeddings {positions} in its config, model_max_length of "
            f"its tokenizer {tokenizer_limit}); correct its config.json, or model.config_overrides"
        )
    if max_length > limit:
        raise ModelError(f"data.max_length is {max_length}, but '{name}' takes {limit} tokens; lower data.max_length")
