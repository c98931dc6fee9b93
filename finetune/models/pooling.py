"""Which states the classification head reads (recipe key `model.pooling`), and how `auto` is decided.

A pooled classifier reads the mean over tokens (`mean`) or the first token (`cls`); see `pooled_classifier.py`, which
also says why its config.json has a model type of its own. `head` is the family's own classification head. Imports no
torch, so that `finetune check` can use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES

# As in pooled_classifier.py, which can import nothing from here.
POOLED_MODEL_TYPE, FAMILY_KEY, POOLING_KEY = "pooled_classifier", "family_model_type", "finetune_pooling"
PRUNED_MODEL_TYPE = "pruned_classifier"  # see pruned_config.py
LAYER_TYPES, SAVED_LAYERS = "layer_types", "family_num_hidden_layers"
POOLED_CODE = "pooled_classifier.py"  # the file next to the weights
HEAD, POOLED = "head", ("cls", "mean")
# What `auto` chooses for a pretrained encoder that does not come from sentence-transformers.
DEFAULT_POOLING = HEAD
# Why a classification head cannot start from a linear probe.
NO_STATES = "model.pooling is head, and the probe is for cls and mean"
NO_PRETRAINED_ENCODER = "the encoder has random weights"
# The file of sentence-transformers with the pooling of a checkpoint. Its keys since version 6, and those before.
POOLING_FILE = "1_Pooling/config.json"
MODULES_FILE = "modules.json"
_MODE_KEY = "pooling_mode"
_OLD_MODE_KEYS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}

ReadJson = Callable[[str], object]  # from the name of a file of the checkpoint to its content; None: no such file


def pooling_of(config: Any) -> str:
    """Return the pooling of a classifier with this config: head, cls or mean."""
    return str(getattr(config, POOLING_KEY, HEAD))


def set_pooling(config: Any, pooling: str) -> None:
    """Set the pooling of a config in place."""
    if pooling == HEAD:
        vars(config).pop(POOLING_KEY, None)
    else:
        setattr(config, POOLING_KEY, pooling)


def family_entries(entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the entries of a config.json, those of a pooled or pruned classifier with the model type of its encoder.

    The code next to the weights of a pooled classifier is never run: finetune has its own.

    Raises:
        ModelError: it is a pooled or pruned classifier without a valid pooling or model type.
    """
    own_type = entries.get("model_type")
    if own_type not in (POOLED_MODEL_TYPE, PRUNED_MODEL_TYPE):
        return {key: value for key, value in entries.items() if key != POOLING_KEY}
    family, pooling = entries.get(FAMILY_KEY), entries.get(POOLING_KEY)
    if own_type == PRUNED_MODEL_TYPE and not isinstance(family, str):
        raise ModelError(
            f"{where} has model_type {own_type} and {FAMILY_KEY} {family!r:.80}, which must be a model type: copy the "
            "file from the run again"
        )
    if own_type == PRUNED_MODEL_TYPE and pooling is not None:
        raise ModelError(
            f"{where} has model_type {own_type} and {POOLING_KEY} {pooling!r:.80}, which only a {POOLED_MODEL_TYPE} "
            "has: copy the file from the run again"
        )
    if own_type == POOLED_MODEL_TYPE and (pooling not in POOLED or not isinstance(family, str)):
        raise ModelError(
            f"{where} has {POOLING_KEY} {pooling!r:.80} and {FAMILY_KEY} {family!r:.80}; the first must be cls or "
            "mean, and the second a model type: copy the file from the run again"
        )
    unused = {"auto_map", FAMILY_KEY, LAYER_TYPES, SAVED_LAYERS} | ({"architectures"} if pooling else set())
    kept = {key: value for key, value in entries.items() if key not in unused} | {"model_type": family}
    types = entries.get(LAYER_TYPES)
    if isinstance(types, list) and (rest := [name for name in types if not str(name).startswith(str(own_type))]):
        kept[LAYER_TYPES] = rest
    if SAVED_LAYERS in entries:
        kept["num_hidden_layers"] = entries[SAVED_LAYERS]
    return kept


def choose_pooling(requested: str, model_type: str, entries: Mapping[str, Any], read_json: ReadJson) -> tuple[str, str]:
    """Return the pooling of a new classifier on a checkpoint, and the reason if it was chosen automatically.

    Args:
        requested: `model.pooling` of the recipe.
        entries: of the checkpoint's config.json, from `family_entries`.
        read_json: reads another file of the checkpoint.

    Raises:
        ModelError: the requested pooling does not exist for this model, or the checkpoint has another.
    """
    own = entries.get(POOLING_KEY)
    if requested != "auto":
        check_pooling(requested, model_type)
        if own is not None and requested not in (own, HEAD):
            raise ModelError(
                f"model.pooling is {requested}, but the checkpoint's classification head was trained on pooling {own}; "
                f"set it to {own}, or to head for a new head of the family"
            )
        return requested, ""
    if own is not None:
        return own, "as the checkpoint was fine-tuned"
    if why_not_pooled(model_type):
        return HEAD, why_not_pooled(model_type)
    if is_classifier(entries):
        return HEAD, "the checkpoint is already a classifier"
    mode = sentence_transformers_mode(read_json)
    if mode in POOLED:
        return mode, f"by the checkpoint's {POOLING_FILE}"
    reason = f"pooling {mode} of the checkpoint's {POOLING_FILE} is not supported" if mode else "the default"
    return DEFAULT_POOLING, reason


def check_pooling(pooling: str, model_type: str) -> None:
    """Raise ModelError if a model type has no such pooling."""
    if pooling in POOLED and (reason := why_not_pooled(model_type)):
        raise ModelError(f"model.pooling {pooling} cannot be used: {reason}; set model.pooling: head")


def check_probe(requested: str, reason: str) -> None:
    """Raise ModelError if `model.classifier_init` is linear_probe, and there is a reason why that is not possible."""
    if requested == "linear_probe" and reason:
        raise ModelError(f"model.classifier_init is linear_probe, but {reason}; set it to random")


def why_not_pooled(model_type: str) -> str:
    """Return why token states of a model type cannot be pooled, or "" if they can be."""
    return FAMILIES[model_type].not_pooled if model_type in FAMILIES else f"'{model_type}' is not in transformers"


def is_classifier(entries: Mapping[str, Any]) -> bool:
    """Return whether the config.json is that of a checkpoint that was fine-tuned as a classifier."""
    architectures = entries.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def sentence_transformers_mode(read_json: ReadJson) -> str:
    """Return the pooling that a sentence-transformers checkpoint says: cls, mean, another name, or "" for none."""
    file, modules = POOLING_FILE, read_json(MODULES_FILE)
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and str(module.get("type")).rpartition(".")[2] == "Pooling":
            path = str(module.get("path"))
            if re.fullmatch(r"[A-Za-z0-9_]+", path):  # never outside the checkpoint
                file = f"{path}/config.json"
    content = read_json(file)
    if not isinstance(content, dict):
        return ""
    old = [key for key, value in content.items() if key.startswith(f"{_MODE_KEY}_") and value is True]
    modes = content.get(_MODE_KEY) or old or "mean"  # the default of sentence-transformers
    names = [_OLD_MODE_KEYS.get(str(mode), str(mode)) for mode in (modes if isinstance(modes, list) else [modes])]
    return " and ".join(names)
