"""Checks of the options of training that need several keys of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.recipe.validation import Problem, section_of


def training_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with options of training that have no effect or cannot be used together."""
    training, task = section_of(document, "training"), section_of(document, "task")
    if task.get("problem_type", "single_label_classification") != "single_label_classification":
        for key in _SINGLE_LABEL_ONLY:
            if training.get(key):
                yield _problem(key, "applies only to single_label_classification; remove it")
    if training.get("reinit_layers"):
        if document.get("peft") is not None:
            text = "initializes layers at random, and LoRA would not train them; remove this key, or the peft section"
            yield _problem("reinit_layers", text)
        elif section_of(document, "model").get("model_type"):
            yield _problem("reinit_layers", "a new model has random weights already; remove this key")
    yield from _contrastive_problems(training)


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


_SINGLE_LABEL_ONLY = ("label_smoothing_factor", "contrastive_weight")


def _problem(key: str, text: str) -> Problem:
    return Problem(("training", key), text)
