"""What is wrong with single values of a recipe: pydantic's findings in plain words, with the nearest right name."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from finetune.errors import did_you_mean
from finetune.recipe.schema import Recipe
from finetune.recipe.validation import Problem, written
from finetune.recipe.yaml_parser import Location

# What other tools call a thing -> where it is here.
FOREIGN_NAMES = {
    "warmup_ratio": "training.warmup_steps (a number below 1 is a share of all steps)",
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
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "torch_dtype": "model.dtype",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "dataset": "data.dataset_name",
    "labels": "task.label_names",
    "num_labels": "task.label_names (their number follows)",
    "load_best_model_at_end": "nothing to set: the best evaluation's weights are always kept",
    "greater_is_better": "nothing to set: it follows from evaluation.metric_for_best_model",
    "adapter": "peft.peft_type",
    "lora_bias": "nothing to set: biases are not trained under adapters",
    "modules_to_save": "nothing to set: what the checkpoint does not hold is always trained and saved",
    "task_type": "task.problem_type",
    "dropout": "peft.lora_dropout (of the model: model.config_overrides)",
    "optim": "nothing to set: the optimizer is AdamW",
    "gradient_checkpointing": "nothing to set: activations are kept; smaller batches with accumulation save memory",
    "activation_checkpointing": "nothing to set: activations are kept; smaller batches with accumulation save memory",
    "logging_strategy": "logging.logging_steps",
    "do_train": "nothing to set: finetune train does all of it",
    "do_eval": "nothing to set: finetune train does all of it",
    "do_predict": "nothing to set: finetune train does all of it",
}

_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "too_short": "must have at least one item",
    "dict_type": "must be a mapping",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
}


_SIMILAR = 0.8  # of difflib: a letter or two of a usual key
_LONGEST_NAME = 60
_GIVEN = reprlib.Repr()
_GIVEN.maxlevel, _GIVEN.maxstring, _GIVEN.maxlong, _GIVEN.maxother = 3, 77, 77, 77


def schema_problems(
    error: ValidationError, document: Mapping[str, Any], lines: Mapping[Location, str], limit: int
) -> list[Problem]:
    """Return pydantic's findings about a document as problems, one for each place; of more than `limit`, the first."""
    found: dict[Location, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_place(item, document), []).append(item)
    around = {location[:n] for location in found for n in range(len(location))}
    # A mapping that holds a mistake is meant as a mapping: that it is not the word either would mislead.
    kept = {
        location: [item for item in items if not (location in around and item["type"] == "literal_error")]
        for location, items in found.items()
    }
    first = in_order([location for location, items in kept.items() if items], lines)[:limit]
    return [
        Problem(location, " or ".join(dict.fromkeys(_describe(item, location) for item in kept[location])))
        for location in first
    ]


def in_order(locations: Iterable[Location], lines: Mapping[Location, str]) -> list[Location]:
    """Return the locations in the order in which their keys were written down."""
    order = {location: number for number, location in enumerate(lines)}

    def position(location: Location) -> int:
        known = written(location, lines)
        return -1 if known is None else order[known]

    return sorted(locations, key=position)


def _place(item: Any, document: Mapping[str, Any]) -> Location:
    """Return where a finding is in the document: pydantic's location without the names of its types."""
    value: Any = document
    place: list[str | int] = []
    for number, part in enumerate(item["loc"], start=1):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
        elif item["type"] != "missing" or number < len(item["loc"]):
            continue
        place.append(part)
    return tuple(place)


def _describe(item: Any, location: Location) -> str:
    kind, given = item["type"], item.get("input")
    if kind == "missing":
        return "is missing and has no default; add it"
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        choices = item["ctx"]["expected"]
        rule = f"must be {choices}"
        near = did_you_mean(str(given), [choice.strip(" '") for choice in choices.replace(" or ", ",").split(",")])
    else:
        rule = _RULES.get(kind, item["msg"].replace("Input should be", "must be").replace("Input should", "must"))
        near = ""
    if given is None:
        return f"is empty (null), but it {rule}; fill it in, or leave it out"
    return f"given {_shown(given)}; {rule}{near}"


def _shown(given: object) -> str:
    """Return a value as YAML writes it, shortened."""
    text = _GIVEN.repr(given)
    return text.lower() if isinstance(given, bool) else text


def _unknown_key(location: Location) -> str:
    name, section = str(location[-1]), location[:-1]
    if name in FOREIGN_NAMES:
        hint = FOREIGN_NAMES[name]
        return f"unknown key; {hint}" if hint.startswith("nothing") else f"unknown key; here it is {hint}"
    places = _key_places()
    if name in places:  # the same name elsewhere says more than a near name here
        return f"unknown key; it belongs in {'.'.join(map(str, places[name][0])) or 'the top level'}"
    here = [key for key, sections in places.items() if section in sections]
    near = _near_key(name, here)
    if near is None:
        elsewhere = _near_key(name, places)
        near = None if elsewhere is None else ".".join(map(str, (*places[elsewhere][0], elsewhere)))
    return f"unknown key; did you mean '{near}'?" if near else "unknown key"


def _near_key(name: str, keys: Iterable[str]) -> str | None:
    """Return the key that a name is a misspelling or the unique beginning of, or None."""
    if len(name) > _LONGEST_NAME:
        return None
    near = difflib.get_close_matches(name, sorted(keys), n=1, cutoff=_SIMILAR)
    longer = [key for key in keys if key.startswith(f"{name}_")]
    return near[0] if near else longer[0] if len(longer) == 1 else None


@cache
def _key_places() -> dict[str, list[Location]]:
    """Return the sections of every key."""
    places: dict[str, list[Location]] = {}
    for name, field in Recipe.model_fields.items():
        places.setdefault(name, []).append(())
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for key in kind.model_fields:
                    places.setdefault(key, []).append((name,))
    return places
