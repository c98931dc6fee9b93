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


_SINGLE_LABEL_ONLY = ("label_smoothing_factor",)


def _problem(key: str, text: str) -> Problem:
    return Problem(("training", key), text)
