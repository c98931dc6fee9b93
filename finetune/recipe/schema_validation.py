"""Checks of single values of a recipe: the errors of pydantic as messages, with the name that was probably meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from finetune.errors import did_you_mean
from finetune.recipe.evaluation_section import HeadMethodSettings
from finetune.recipe.schema import Recipe
from finetune.recipe.validation import Problem, nearest_written
from finetune.recipe.yaml_parser import Location

# Key of another tool -> the key here.
FOREIGN_NAMES = {
    "warmup_ratio": "training.warmup_steps (a number below 1 is a fraction of all steps)",
    "group_by_length": "training.train_sampling_strategy: group_by_length",
    "evaluation_strategy": "evaluation.eval_strategy",
    "lora_r": "peft.r",
    "lora_rank": "peft.r",
    "rank": "peft.r",
    "alpha": "peft.lora_alpha",
    "lora_target_modules": "peft.target_modules",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "evaluation.per_device_eval_batch_size",
    "lr": "training.learning_rate",
    "scheduler": "training.lr_scheduler_type",
    "lr_scheduler": "training.lr_scheduler_type",
    "gradient_clipping": "training.max_grad_norm",
    "fp16": "training.mixed_precision: fp16",
    "bf16": "training.mixed_precision: bf16",
    "int8": "training.mixed_precision: int8",
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "torch_dtype": "model.dtype",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "dataset": "data.dataset_name",
    "labels": "task.label_names",
    "num_labels": "task.label_names (num_labels is their number)",
    "load_best_model_at_end": "no setting is needed: the weights of the best evaluation are always kept",
    "greater_is_better": "no setting is needed: evaluation.metric_for_best_model determines it",
    "adapter": "peft.peft_type",
    "lora_bias": "there is no such setting: biases are not trained with adapters",
    "modules_to_save": "no setting is needed: modules that the checkpoint does not have are always trained and saved",
    "task_type": "task.problem_type",
    "dropout": "peft.lora_dropout (dropout of a new model: model.config_overrides)",
    "optim": "there is no such setting: the optimizer is AdamW",
    "sample_packing": "training.padding_free",
    "activation_checkpointing": "training.gradient_checkpointing",
    "label_smoothing": "training.label_smoothing_factor",
    "llrd": "training.layerwise_lr_decay",
    "ema": "training.ema_decay",
    "logging_strategy": "logging.logging_steps",
    "do_train": "no setting is needed: finetune train does all stages",
    "do_eval": "no setting is needed: finetune train does all stages",
    "do_predict": "no setting is needed: finetune train does all stages",
}
NO_KEY = ("no setting", "there is no such setting")  # a hint that begins with one of these names no key

_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must be up to 128 letters, digits, '.', '-' or '_', and not start with '.' or '-'",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
    "union_tag_invalid": "must be the name of a method, or a mapping with its settings",
}


_SIMILARITY = 0.8  # for difflib: one or two letters of a typical key may differ
_MAX_NAME_LENGTH = 60
_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxlevel, _SHORT_REPR.maxstring, _SHORT_REPR.maxlong, _SHORT_REPR.maxother = 3, 77, 77, 77


def schema_problems(
    error: ValidationError,
    document: Mapping[str, Any],
    lines: Mapping[Location, str],
    limit: int,
    unknown_key: Callable[[Location], str] | None = None,
) -> list[Problem]:
    """Return pydantic's errors as one problem per location; only the first `limit` of them.

    Args:
        unknown_key: returns the message for an unknown key; None: that of a recipe.
    """
    errors: dict[Location, list[Any]] = {}
    for item in error.errors(include_url=False):
        errors.setdefault(_location(item, document), []).append(item)
    enclosing = {location[:n] for location in errors for n in range(len(location))}
    # A key may take either a word or a mapping. If it is given a mapping with a problem, only that problem is reported.
    kept = {
        location: [item for item in items if not (location in enclosing and item["type"] == "literal_error")]
        for location, items in errors.items()
    }
    first = in_file_order([location for location, items in kept.items() if items], lines)[:limit]
    describe_key = unknown_key or _unknown_key
    return [Problem(location, _describe(kept[location], location, describe_key)) for location in first]


def in_file_order(locations: Iterable[Location], lines: Mapping[Location, str]) -> list[Location]:
    """Return the locations in the order of the file."""
    order = {location: number for number, location in enumerate(lines)}

    def position(location: Location) -> int:
        known = nearest_written(location, lines)
        return -1 if known is None else order[known]

    return sorted(locations, key=position)


def _location(item: Any, document: Mapping[str, Any]) -> Location:
    """Return the location of an error in the document: pydantic's location without the names of types."""
    value: Any = document
    location: list[str | int] = []
    for number, part in enumerate(item["loc"], start=1):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
        elif item["type"] != "missing" or number < len(item["loc"]):
            continue
        location.append(part)
    return tuple(location)


def _describe(items: Sequence[Any], location: Location, unknown_key: Callable[[Location], str]) -> str:
    """Return pydantic's errors of one value as a message: the value that was given, and the rules."""
    texts = [text for item in items if (text := _without_value(item, location, unknown_key))]
    # A suggestion ends the message, so the rule with the choices comes last.
    others = sorted(
        (item for item in items if not _without_value(item, location, unknown_key)),
        key=lambda item: item["type"] == "literal_error",
    )
    if others:
        rules = list(dict.fromkeys(map(_rule, others)))
        rule = ", or ".join([rules[0], *(other.removeprefix("must be ") for other in rules[1:])])
        value = others[0].get("input")
        given = f"is empty (null), but {rule}; give a value, or remove the key"
        texts.append(given if value is None else f"given {_as_yaml(value)}; {rule}{_near_choice(others[-1])}")
    return " or ".join(dict.fromkeys(texts))


def _without_value(item: Any, location: Location, unknown_key: Callable[[Location], str]) -> str:
    """Return the message of an error that does not depend on the value, otherwise ""."""
    if item["type"] == "missing":
        return "is missing and has no default; add it"
    if item["type"] == "extra_forbidden":
        return unknown_key(location)
    return str(item["ctx"]["error"]) if item["type"] == "value_error" else ""


def _rule(item: Any) -> str:
    """Return the rule that a value breaks, such as "must be a number"."""
    if item["type"] == "literal_error":
        return f"must be {item['ctx']['expected']}"
    if item["type"] == "too_short":
        least = item["ctx"]["min_length"]
        return "must have at least one item" if least == 1 else f"must have at least {least} items"
    message = str(item["msg"]).replace("Input should be", "must be").replace("Input should", "must")
    return _RULES.get(item["type"], message)


def _near_choice(item: Any) -> str:
    """Return the choice that was probably meant, as a suggestion, or ""."""
    if item["type"] != "literal_error":
        return ""
    choices = item["ctx"]["expected"].replace(" or ", ",").split(",")
    return did_you_mean(str(item.get("input")), [choice.strip(" '") for choice in choices])


def _as_yaml(value: object) -> str:
    """Return a value as it is written in YAML, shortened."""
    text = _SHORT_REPR.repr(value)
    return text.lower() if isinstance(value, bool) else text


def _unknown_key(location: Location) -> str:
    """Return the message for an unknown key, with the key that was probably meant."""
    name, section = str(location[-1]), location[:-1]
    if section[:2] == ("head_importance", "method"):
        keys = list(HeadMethodSettings.model_fields)
        near = _near_key(name, keys)
        return f"unknown key; did you mean '{near}'?" if near else f"unknown key; a method has {', '.join(keys)}"
    if name in FOREIGN_NAMES:
        hint = FOREIGN_NAMES[name]
        return f"unknown key; {hint}" if hint.startswith(NO_KEY) else f"unknown key; use {hint}"
    sections_of = _sections_of_keys()
    if name in sections_of:  # the same name in another section is a better hint than a similar name in this one
        return f"unknown key; it belongs in {'.'.join(map(str, sections_of[name][0])) or 'the top level'}"
    near = _near_key(name, [key for key, sections in sections_of.items() if section in sections])
    if near is None and (other := _near_key(name, sections_of)) is not None:
        near = ".".join(map(str, (*sections_of[other][0], other)))
    return f"unknown key; did you mean '{near}'?" if near else "unknown key"


def _near_key(name: str, keys: Iterable[str]) -> str | None:
    """Return the key that is spelled almost like a name, or the only key that begins with it, or None."""
    if len(name) > _MAX_NAME_LENGTH:
        return None
    near = difflib.get_close_matches(name, sorted(keys), n=1, cutoff=_SIMILARITY)
    longer = [key for key in keys if key.startswith(f"{name}_")]
    return near[0] if near else longer[0] if len(longer) == 1 else None


@cache
def _sections_of_keys() -> dict[str, list[Location]]:
    """Return, for every key, the sections that have it."""
    sections: dict[str, list[Location]] = {}
    for name, field in Recipe.model_fields.items():
        sections.setdefault(name, []).append(())
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for key in kind.model_fields:
                    sections.setdefault(key, []).append((name,))
    return sections
