"""Checks of the options of training that need several keys of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.errors import did_you_mean
from finetune.recipe.lr_schedules import SCHEDULES, lowest_rate_problem
from finetune.recipe.validation import Problem, section_of


def training_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with options of training that have no effect or cannot be used together."""
    training, task = section_of(document, "training"), section_of(document, "task")
    if task.get("problem_type", "single_label_classification") != "single_label_classification":
        for key in _SINGLE_LABEL_ONLY:
            if training.get(key):
                yield _problem(key, "applies only to single_label_classification; remove it")
    if training.get("focal_gamma"):
        if task.get("problem_type") == "regression":
            yield _problem("focal_gamma", "needs labels, but problem_type is regression; remove it")
        elif training.get("label_smoothing_factor"):
            text = "cannot be used with label_smoothing_factor: one reduces the weight of confident rows, the other "
            yield _problem("focal_gamma", text + "their confidence; remove one")
    if training.get("reinit_layers"):
        if document.get("peft") is not None:
            text = "initializes layers at random, and LoRA would not train them; remove this key, or the peft section"
            yield _problem("reinit_layers", text)
        elif section_of(document, "model").get("model_type"):
            yield _problem("reinit_layers", "a new model has random weights already; remove this key")
    if training.get("gradient_checkpointing") is True and training.get("torch_compile") is True:
        yield _problem("gradient_checkpointing", "cannot be used with torch_compile: true; remove one")
    if section_of(document, "data").get("long_text") == "window":
        for key, text in _NOT_WITH_WINDOWS.items():
            if training.get(key):
                yield _problem(key, f"{text}; remove it, or set data.long_text to truncate or head_tail")
    yield from _contrastive_problems(training)
    yield from _schedule_problems(training)


def label_weight_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with weights of labels that do not apply or do not name a label."""
    training, task = section_of(document, "training"), section_of(document, "task")
    problem_type, names = task.get("problem_type", "single_label_classification"), task.get("label_names")
    for key, applies_to in _LABEL_WEIGHTS.items():
        weights = training.get(key)
        if weights and problem_type != applies_to:
            other = next((name for name, type_ in _LABEL_WEIGHTS.items() if type_ == problem_type), None)
            yield _problem(key, f"applies only to {applies_to}; {f'use {other}' if other else 'remove it'}")
        if isinstance(weights, dict) and isinstance(names, list):
            for name in weights:
                if name not in names:
                    suggestion = did_you_mean(str(name), map(str, names))
                    text = f"is not a label; the labels are {', '.join(map(str, names))}{suggestion}"
                    yield _problem(key, text, name)


def _schedule_problems(training: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with the parameters of the learning rate schedule."""
    name, kwargs = training.get("lr_scheduler_type", "linear"), training.get("lr_scheduler_kwargs", {})
    if not isinstance(name, str) or name not in SCHEDULES or not isinstance(kwargs, dict):
        return  # reported as a wrong type
    parameters = SCHEDULES[name]
    for key, value in kwargs.items():
        if key not in parameters:
            known = f"has {', '.join(parameters)}" if parameters else "has no parameters; remove it"
            yield _problem("lr_scheduler_kwargs", f"{name} {known}{did_you_mean(str(key), parameters)}", key)
        elif not parameters[key].is_valid(value):
            yield _problem("lr_scheduler_kwargs", f"given {value!r:.60}; must be {parameters[key].rule}", key)
    if name == "cosine_with_min_lr" and len({"min_lr", "min_lr_rate"} & kwargs.keys()) != 1:
        text = "cosine_with_min_lr needs min_lr (a learning rate) or min_lr_rate (a fraction of the peak); give one"
        yield _problem("lr_scheduler_kwargs", text)
    if text := lowest_rate_problem(kwargs, training.get("learning_rate")):
        yield _problem("lr_scheduler_kwargs", text)


def _contrastive_problems(training: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with settings that leave no rows of a class to compare."""
    if not training.get("contrastive_weight"):
        return
    if training.get("train_sampling_strategy") == "sequential":
        text = "must not be sequential with contrastive_weight, which needs batches with several rows of a class"
        yield _problem("train_sampling_strategy", f"{text}; remove one")
    if training.get("per_device_train_batch_size") == 1:
        text = "is 1, but contrastive_weight compares the rows of a batch; use at least 4, or remove contrastive_weight"
        yield _problem("per_device_train_batch_size", text)


_LABEL_WEIGHTS = {"class_weights": "single_label_classification", "pos_weight": "multi_label_classification"}
_NOT_WITH_WINDOWS = {
    "contrastive_weight": "compares one state per row, and with data.long_text: window a row has one per window",
    "cache_frozen_layers": "stores one sequence of states per row, and with data.long_text: window a row has several",
}
_SINGLE_LABEL_ONLY = ("label_smoothing_factor", "contrastive_weight")


def _problem(key: str, text: str, *part: str) -> Problem:
    return Problem(("training", key, *part), text)
