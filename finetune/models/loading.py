"""Load a saved classifier: `load_classifier(folder)`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn
from transformers import PreTrainedConfig

from finetune.data.long_text import LongText, long_text_from
from finetune.errors import ModelError
from finetune.models.adapted import ADAPTER_CONFIG, ADAPTER_WEIGHTS
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
from finetune.models.conformal import read_conformal
from finetune.models.pooling import HEAD, POOLED, set_pooling
from finetune.models.pretrained import (
    DTYPES,
    Source,
    load_config,
    load_tokenizer,
    model_load_errors,
)
from finetune.models.pruned_model import classifier_class
from finetune.progress import stage
from finetune.recipe.names import ProblemType
from finetune.runs.pruned_files import INFO_FILE


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
    model: nn.Module
    with stage("loading model"):
        if (folder / ADAPTER_CONFIG).is_file():
            if source is None or not (folder / ADAPTER_WEIGHTS).is_file():
                raise ModelError(
                    f"{folder} contains an adapter without {ADAPTER_WEIGHTS} or without its base; name another run"
                )
            model = _load_adapted(folder, source, info)
        else:
            base_model, new = _load_plain(saved, load_config(saved))
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
        long_text=info.long_text,
    )
    _ = classifier.rules  # raises for thresholds that do not fit the labels
    return replace(classifier, conformal=read_conformal(folder, len(classifier.label_names)))


@dataclass(frozen=True)
class _Info:
    """The content of classifier.json."""

    max_length: int
    source: Source | None
    base_checksum: str | None
    trained_modules: tuple[str, ...] | None
    label_names: tuple[str, ...]
    problem_type: ProblemType | None
    pooling: str
    text_columns: tuple[str, ...]
    thresholds: tuple[float | None, ...] | None
    temperature: float
    long_text: LongText


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
        adapter_entries, output_options, long_text = _adapter_entries(info), _output_options(info), long_text_from(info)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{folder} contains no saved classifier ({type(error).__name__}: {error}); name the model folder of a run"
        ) from error
    if changed_base:
        raise ModelError(
            f"{file}: this adapter needs base weights that an earlier version of finetune changed and stored next to "
            "it; train again, or merge it with that version"
        )
    return _Info(max_length, source, checksum, *adapter_entries, *output_options, long_text)


def _adapter_entries(info: dict[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...], ProblemType | None, str]:
    """Return trained modules, label names, problem type and pooling, which earlier versions did not write.

    Raises:
        ValueError: a value is of the wrong type.
    """
    trained, names, problem_type = (info.get(key) for key in ("trained_modules", "label_names", "problem_type"))
    for value in (trained, names):
        if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise ValueError(f"trained_modules {trained}, label_names {names}")
    if problem_type not in (None, *get_args(ProblemType)):
        raise ValueError(f"problem_type {problem_type}")
    pooling = info.get("pooling", HEAD)
    if pooling not in (HEAD, *POOLED):
        raise ValueError(f"pooling {pooling}")
    return None if trained is None else tuple(trained), tuple(names or ()), problem_type, pooling


def _output_options(info: dict[str, Any]) -> tuple[tuple[str, ...], tuple[float | None, ...] | None, float]:
    """Return text columns, thresholds and temperature, which earlier versions did not write.

    Raises:
        ValueError: a value is of the wrong type.
    """
    columns, thresholds, temperature = info.get("text_columns", []), info.get("thresholds"), info.get("temperature", 1)
    numbers = [temperature, *(value for value in thresholds or () if value is not None)]
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


def _load_adapted(folder: Path, source: Source, info: _Info) -> nn.Module:
    """Return the adapter in a folder on its base, which must be the one that it was trained on."""
    from finetune.models.adapter_files import load_adapter, read_adapter_config  # imports peft: a quarter of a second

    model, new = _load_plain(source, _adapter_model_config(folder, source, info))
    adapter = read_adapter_config(folder, info.trained_modules)
    saved_modules = list(adapter.modules_to_save or ())
    missing = [name for name in new if name.rpartition(".")[0] not in saved_modules]
    check_encoder_weights(model, missing, source.name)
    current = base_checksum(model, saved_modules)
    if info.base_checksum is not None and current != info.base_checksum:
        raise ModelError(
            f"the weights of '{source.name}' (revision {source.revision}) are not those that the adapter in {folder} "
            f"was trained on (checksum {current}, was {info.base_checksum}): restore them, or train the adapter again"
        )
    if missing:
        raise ModelError(f"neither the adapter in {folder} nor '{source.name}' has {missing[0]}; name another run")
    return load_adapter(model, adapter, folder)


def _adapter_model_config(folder: Path, source: Source, info: _Info) -> PreTrainedConfig:
    """Return the config of the base with the adapter's labels; earlier versions wrote it next to the adapter.

    Raises:
        ModelError: there is no such config, and classifier.json has no labels.
    """
    if (folder / "config.json").is_file():
        return load_config(replace(source, name=str(folder), revision="main"))
    if not info.label_names:
        raise ModelError(f"{folder / INFO_FILE} has no label_names, which an adapter needs; copy it from the run again")
    config = load_config(source)
    set_pooling(config, info.pooling)
    config.id2label = dict(enumerate(info.label_names))
    config.label2id = {name: index for index, name in enumerate(info.label_names)}
    config.problem_type = info.problem_type
    return config
