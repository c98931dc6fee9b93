"""Say what is wrong with a recipe, one line a mistake, each with its repair.

Checks that need two sections, or the disk, are here as well, so that all mistakes come at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from finetune.errors import did_you_mean
from finetune.recipe.schema import METRICS, LoggingSection, ProblemType, Recipe

Location = tuple[str | int, ...]

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
}

NO_VALIDATION = "give data.validation_file (or rows, or split), or hold some out with data.validation_size: 0.1"

FILE_TYPES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")

_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
}


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, and what to say of it."""

    location: Location
    text: str

    def _written(self, lines: Mapping[Location, str]) -> Location | None:
        """Return the key itself, or the nearest around it, that was written down."""
        around = (self.location[:n] for n in range(len(self.location), 0, -1))
        return next((location for location in around if location in lines), None)

    def position(self, lines: Mapping[Location, str]) -> int:
        """Return where the key stands among all keys that were written down, in their order."""
        written = self._written(lines)
        return -1 if written is None else list(lines).index(written)

    def line(self, lines: Mapping[Location, str]) -> str:
        """Return one line: the key's path, where it was written, and the text."""
        written = self._written(lines)
        where = "" if written is None else lines[written]
        path = ".".join(str(part) for part in self.location) or "recipe"
        return f"{path}{f' ({where})' if where else ''}: {self.text}"


def schema_problems(error: ValidationError) -> list[Problem]:
    """Turn pydantic's findings into problems, one for each place."""
    found: dict[Location, list[str]] = {}
    items = [(tuple(part for part in item["loc"] if not _is_union_tag(part)), item) for item in error.errors()]
    for location, item in items:
        # A mapping that holds a mistake is meant as a mapping: that it is not the word either would mislead.
        inner = any(other[: len(location)] == location != other for other, _ in items)
        if not (inner and item["type"] == "literal_error"):
            found.setdefault(location, []).append(_describe(item, location))
    return [Problem(location, " or ".join(dict.fromkeys(texts))) for location, texts in found.items()]


def _is_union_tag(part: str | int) -> bool:
    return isinstance(part, str) and (part in {"str", "int", "float", "bool"} or "[" in part)


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
        near = did_you_mean(str(given), [choice.strip(" '") for choice in choices.replace(" or ", ",").split(",")])
        return f"given {given!r}; must be {choices}{near}"
    rule = _RULES.get(kind, item["msg"].replace("Input should be", "must be").replace("Input should", "must"))
    shown = repr(given) if len(repr(given)) < 80 else f"{repr(given)[:77]}..."
    return f"given {shown}; {rule}"


def _unknown_key(location: Location) -> str:
    name, section = str(location[-1]), location[:-1]
    if name in FOREIGN_NAMES:
        return f"unknown key; here it is {FOREIGN_NAMES[name]}"
    places = dict(_key_places())
    here = [key for key, sections in places.items() if section in sections]
    near = did_you_mean(name, here)
    if not near and name in places:
        near = f"; it belongs in {'.'.join(map(str, places[name][0])) or 'the top level'}"
    return f"unknown key{near or did_you_mean(name, places)}"


def _key_places() -> Iterator[tuple[str, list[Location]]]:
    places: dict[str, list[Location]] = {}
    for name, field in Recipe.model_fields.items():
        places.setdefault(name, []).append(())
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for key in kind.model_fields:
                    places.setdefault(key, []).append((name,))
    yield from places.items()


def metric_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the metrics that the problem type does not have."""
    task, evaluation = _section(document, "task"), _section(document, "evaluation")
    problem_type = task.get("problem_type", "single_label_classification")
    if problem_type not in get_args(ProblemType):
        return
    known = METRICS[problem_type]
    metrics = evaluation.get("metrics")
    for index, name in enumerate(metrics if isinstance(metrics, list) else []):
        if name not in known:
            rule = f"given {name!r}; {problem_type} has {', '.join(known)}{did_you_mean(str(name), known)}"
            yield Problem(("evaluation", "metrics", index), rule)
    best = evaluation.get("metric_for_best_model")
    choices = [*(metrics if isinstance(metrics, list) else known), "loss"]
    if isinstance(best, str) and best not in choices:
        rule = f"given {best!r}; must be one of {', '.join(map(str, choices))}{did_you_mean(best, map(str, choices))}"
        yield Problem(("evaluation", "metric_for_best_model"), rule)
    if evaluation.get("early_stopping_patience") and evaluation.get("eval_strategy") == "no":
        yield Problem(("evaluation", "early_stopping_patience"), "needs evaluations, but eval_strategy is no")


def freezing_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield freezing beside LoRA, which freezes all but the adapters anyway."""
    training = _section(document, "training")
    for key in ("freeze_embeddings", "freeze_layers"):
        if document.get("peft") is not None and training.get(key):
            yield Problem(("training", key), "LoRA trains its adapters alone; remove this, or the peft section")
    if training.get("cache_frozen_layers") is True:
        text = ""
        if document.get("peft") is not None:
            text = "LoRA adapts every layer, and none is frozen whole; remove this, or the peft section"
        elif _section(document, "model").get("model_type"):
            text = "a new model has nothing worth freezing; remove this"
        elif not (training.get("freeze_embeddings") and training.get("freeze_layers")):
            text = "needs freeze_embeddings: true and freeze_layers of 1 or more: only what is frozen stays the same"
        if text:
            yield Problem(("training", "cache_frozen_layers"), text)


def weight_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield class weights that name no label or do not apply."""
    task, weights = _section(document, "task"), _section(document, "training").get("class_weights")
    if weights and task.get("problem_type") in ("regression", "multi_label_classification"):
        yield Problem(("training", "class_weights"), "apply to single_label_classification only; remove them")
    names = task.get("label_names")
    if isinstance(weights, dict) and isinstance(names, list):
        for name in weights:
            if name not in names:
                text = f"is no label; labels are {', '.join(map(str, names))}{did_you_mean(str(name), map(str, names))}"
                yield Problem(("training", "class_weights", name), text)


def stage_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what one section asks of another that the other does not give."""
    model, data, training = (_section(document, name) for name in ("model", "data", "training"))
    if document.get("peft") is not None and model.get("model_type"):
        text = "peft adapts pretrained weights, but model.model_type builds new ones; remove the peft section"
        yield Problem(("peft",), text)
    if training.get("mixed_precision") == "fp16" and training.get("use_cpu"):
        yield Problem(("training", "mixed_precision"), "fp16 needs a GPU, but use_cpu is true; use bf16 or no")
    asked = _section(document, "head_importance").get("method")
    if "ablation_accuracy" in str(asked) and _section(document, "task").get("problem_type") == "regression":
        text = "accuracy needs classes, and this is a regression; ask for ablation_loss or ablation_kl"
        yield Problem(("head_importance", "method"), text)
    known = data.get("validation_file") or data.get("validation_rows") or data.get("validation_size")
    if data.get("dataset_name") and data.get("validation_split", "validation"):
        known = True
    strategy = _section(document, "evaluation").get("eval_strategy", "epoch")
    if not known and strategy != "no":
        yield Problem(
            ("data",),
            f"there are no validation rows to evaluate on; {NO_VALIDATION}, or set evaluation.eval_strategy: no",
        )
    heads = document.get("head_importance", {})
    split = heads.get("split") if isinstance(heads, dict) else None
    if not known and strategy == "no" and split == "validation":
        yield Problem(
            ("head_importance",), f"split is validation, but there are no such rows; {NO_VALIDATION}, or name another"
        )


def disk_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield files that are missing or of a type that is not read, and libraries that are not installed."""
    for split in ("train", "validation", "test"):
        file = _section(document, "data").get(f"{split}_file")
        if not isinstance(file, str):
            continue
        path = Path(file).expanduser()
        if not path.is_file():
            text = f"no such file '{file}' (looked in {path.absolute().parent}); correct the path"
            yield Problem(("data", f"{split}_file"), text)
        elif path.suffix not in FILE_TYPES:
            yield Problem(("data", f"{split}_file"), f"given '{file}'; a data file ends in {', '.join(FILE_TYPES)}")
    tracker = _section(document, "logging").get("report_to", "none")
    known = get_args(LoggingSection.model_fields["report_to"].annotation)
    if tracker in known and tracker != "none" and importlib.util.find_spec(tracker) is None:
        yield Problem(("logging", "report_to"), f"'{tracker}' is not installed; run `pip install {tracker}`")


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name)
    return section if isinstance(section, dict) else {}
