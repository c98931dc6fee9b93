"""Load a saved classifier: `load_classifier(folder)`."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig

from finetune.errors import ModelError
from finetune.models.checkpoint_checks import (
    base_checksum,
    check_encoder_weights,
    check_finite_weights,
    check_has_heads,
    disable_gradient_checkpointing,
    new_parameters,
)
from finetune.models.checkpoint_config import ATTN_IMPLEMENTATIONS
from finetune.models.classifier import Classifier
from finetune.models.freezing import keep_float32
from finetune.models.head_pruning import classifier_class
from finetune.models.pretrained import (
    DTYPES,
    Source,
    load_config,
    load_tokenizer,
    model_load_errors,
)
from finetune.models.saving import INFO_FILE
from finetune.progress import stage

_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def load_classifier(
    folder: Path, *, trust_remote_code: bool = False, use_safetensors: bool = True, base: str | None = None
) -> Classifier:
    """Return the classifier that `save_classifier` wrote, even if the folder was moved since.

    Args:
        trust_remote_code, use_safetensors: whether code and pickled weights of the base checkpoint are trusted. Only
            the user can decide this: the folder may come from somebody else, so nothing in it is consulted.
        base: where the base checkpoint of an adapter is now; None: where it was.

    Raises:
        ModelError: the folder contains no classifier, or its base checkpoint is not found or has changed.
    """
    info = _read_info(folder)
    source = info.source and replace(
        info.source,
        name=base or info.source.name,
        trust_remote_code=trust_remote_code,
        use_safetensors=use_safetensors,
    )
    saved = Source(str(folder)) if source is None else replace(source, name=str(folder), revision="main")
    saved = replace(saved, use_safetensors=True)  # `save_classifier` always writes safetensors
    tokenizer = load_tokenizer(saved)
    config = load_config(saved)
    model: nn.Module
    with stage("loading model"):
        if (folder / _ADAPTER_CONFIG).is_file():
            if source is None or not (folder / _ADAPTER_WEIGHTS).is_file():
                raise ModelError(
                    f"{folder} contains an adapter without {_ADAPTER_WEIGHTS} or without its base; name another run"
                )
            model = _load_adapted(folder, source, config, info.base_checksum)
        else:
            base_model, new = _load_plain(saved, config)
            check_encoder_weights(base_model, new, saved.name)
            if new:
                raise ModelError(
                    f"{folder} contains no weights of the right size for {new[0]}; save the classifier again"
                )
            model = base_model
    check_finite_weights(model, str(folder))
    classifier = Classifier(
        model.eval(),
        tokenizer,
        info.max_length,
        source,
        base_checksum=info.base_checksum,
        text_columns=info.text_columns,
        thresholds=info.thresholds,
        temperature=info.temperature,
    )
    _ = classifier.rules  # raises for thresholds that do not fit the labels
    return classifier


@dataclass(frozen=True)
class _Info:
    """The content of classifier.json."""

    max_length: int
    source: Source | None
    base_checksum: str | None
    text_columns: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    temperature: float


def _read_info(folder: Path) -> _Info:
    """Return the content of classifier.json; whether code is run is never decided by a file."""
    file = folder / INFO_FILE
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        stored: dict[str, Any] | None = info["source"]
        source = None
        if stored is not None:
            names = [stored["name"], stored["revision"]]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"source {names}")
            if stored["dtype"] not in DTYPES or stored["attn_implementation"] not in ATTN_IMPLEMENTATIONS:
                raise ValueError(f"dtype {stored['dtype']}, attn_implementation {stored['attn_implementation']}")
            source = Source(names[0], names[1], stored["dtype"], stored["attn_implementation"])
        max_length, checksum = info["max_length"], info.get("base_checksum")
        if type(max_length) is not int or max_length < 1 or not isinstance(checksum, str | None):
            raise ValueError(f"max_length {max_length}, base_checksum {checksum}")
        changed_base = info.get("changed_base")
        output_options = _output_options(info)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{folder} contains no saved classifier ({type(error).__name__}: {error}); name the model folder of a run"
        ) from error
    if changed_base:
        raise ModelError(
            f"{file}: this adapter needs base weights that an earlier version of finetune changed and stored next to "
            "it; train again, or merge it with that version"
        )
    return _Info(max_length, source, checksum, *output_options)


def _output_options(info: dict[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...] | None, float]:
    """Return text columns, thresholds and temperature, which earlier versions did not write.

    Raises:
        ValueError: a value is of the wrong type.
    """
    columns, thresholds, temperature = info.get("text_columns", []), info.get("thresholds"), info.get("temperature", 1)
    numbers = [temperature] if thresholds is None else [temperature, *thresholds]
    if not (isinstance(columns, list) and len(columns) <= 2 and all(isinstance(name, str) for name in columns)):
        raise ValueError(f"text_columns {columns}")
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"thresholds {thresholds}, temperature {temperature}")
    return tuple(columns), None if thresholds is None else tuple(thresholds), float(temperature)


def _load_plain(source: Source, config: PreTrainedConfig) -> tuple[Any, list[str]]:
    """Return the classifier with this config and a checkpoint's weights, and the names of parameters it lacks."""
    with model_load_errors(source):
        model, info = classifier_class(config).from_pretrained(
            source.location(),
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a base may have another task's head, which the adapter replaces
            **source.loading_options(),
        )
    disable_gradient_checkpointing(model)
    check_has_heads(model, source.name)
    return model, new_parameters(info)


def _load_adapted(folder: Path, source: Source, config: PreTrainedConfig, checksum: str | None) -> nn.Module:
    """Return the adapter in a folder on its base, which must be the one that it was trained on."""
    model, new = _load_plain(source, config)
    with model_load_errors(Source(str(folder))):
        adapter = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(adapter, peft.LoraConfig) or adapter.megatron_config:
        raise ModelError(f"{folder} contains an adapter of a type that finetune does not train; name another run")
    saved_modules = list(adapter.modules_to_save or ())
    missing = [name for name in new if name.rpartition(".")[0] not in saved_modules]
    check_encoder_weights(model, missing, source.name)
    if missing:
        raise ModelError(f"neither the adapter in {folder} nor '{source.name}' has {missing[0]}; name another run")
    current = base_checksum(model, saved_modules)
    if checksum is not None and current != checksum:
        raise ModelError(
            f"the weights of '{source.name}' (revision {source.revision}) are not those that the adapter in {folder} "
            f"was trained on (checksum {current}, was {checksum}): restore them, or train the adapter again"
        )
    with model_load_errors(Source(str(folder))):
        keep_float32(model, saved_modules)
        with warnings.catch_warnings():
            # Missing keys are an error below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
        with safe_open(folder / _ADAPTER_WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
    different = sorted(stored ^ peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys())
    if different:  # peft ignores unknown weights and initializes missing ones at random
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise ModelError(
            f"{folder / _ADAPTER_WEIGHTS} and {_ADAPTER_CONFIG} belong to different adapters: they differ in "
            f"{different[0]}{more}; copy both from one run again"
        )
    return adapted
