from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.errors import TrainingError
from finetune.models.lora import Lora
from finetune.recipe.schema import Recipe
from finetune.training.resume_check import (
    _ADDED_KEYS,
    check_fingerprint,
    data_fingerprint,
    recipe_fingerprint,
    split_checksum,
)
from tests.conftest import SENTENCES
from tests.support.helpers import ROLES, encoded, tiny_classifier


def fingerprint_of(rows: str = "abc", **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"output_dir": "x", "model": {"model_name_or_path": "m"}, "data": {"train_file": "a.csv"}}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        content[section] = {**content.get(section, {}), key: value} if key else value
    return {**recipe_fingerprint(Recipe.model_validate(content), ["no", "yes"]), "rows": {"train": rows}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 7}, "seed: was 42, now 7"),
        ({"training__learning_rate": 0.1}, 'training.learning_rate: was "auto", now 0.1'),
        ({"training__num_train_epochs": 4}, 'training.num_train_epochs: was "auto", now 4'),
        ({"training__ema_decay": 0.9}, "training.ema_decay: was none, now 0.9"),
        ({"training__lr_scheduler_kwargs": {"power": 2}}, 'training.lr_scheduler_kwargs: was none, now {"power": 2}'),
        ({"model__revision": "v2"}, 'model.revision: was "main", now "v2"'),
        ({"peft": {"r": 4}}, "peft: was none, now {"),
        ({"evaluation__metric_for_best_model": "loss"}, 'metric_for_best_model: was "accuracy", now "loss"'),
        ({"rows": "abd"}, 'rows.train: was "abc", now "abd"'),
        ({"rows": "abd", "data__train_file": "b.csv"}, 'data.train_file: was "a.csv", now "b.csv"'),
    ],
)
def test_differences_that_change_the_result_are_rejected_and_listed(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(TrainingError, match="checkpoint c is of a run that differs from this one:\n  ") as error:
        check_fingerprint(Path("c"), fingerprint_of(), fingerprint_of(**changes))
    assert line in str(error.value)
    assert str(error.value).endswith("restore these settings, or start a new run in another output_dir")
    assert str(error.value).count("\n  ") == len(changes)


def test_options_that_are_off_are_not_in_the_fingerprint() -> None:
    # A checkpoint of the version before these options has none of them, and can be resumed.
    assert len(_ADDED_KEYS) == 12
    assert not fingerprint_of()["training"].keys() & set(_ADDED_KEYS)


def test_other_settings_may_differ() -> None:
    ignored = {
        "output_dir": "y", "overwrite_output_dir": True, "checkpoint__save_strategy": "no", "logging__logging_steps": 3,
        "head_importance": None, "training__num_threads": 3, "evaluation__bootstrap_samples": 100,
        "evaluation__score_training_rows": True,
        "evaluation__metric_for_best_model": "accuracy", "data__train_file": "moved/a.csv", "data__test_file": "t.csv",
        "model__allow_missing_weights": True,
    }  # fmt: skip
    check_fingerprint(Path("c"), fingerprint_of(), fingerprint_of(**ignored))


def test_the_checksum_of_a_split_depends_only_on_its_content(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)
    checksum = split_checksum(split)
    assert split_checksum(replace(encoded(classifier), source="elsewhere")) == checksum
    assert split_checksum(encoded(classifier, [*SENTENCES[:5], "clean the mat"])) != checksum
    assert split_checksum(encoded(classifier, [*SENTENCES[1:], SENTENCES[0]])) != checksum
    assert split_checksum(replace(split, labels=1 - np.asarray(split.labels))) != checksum


def test_frozen_weights_are_part_of_the_fingerprint(tiny_bert: Path) -> None:
    full, lora = tiny_classifier(tiny_bert), Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
    assert data_fingerprint({}, full.model)["frozen_weights"] is None
    adapted = tiny_classifier(tiny_bert, lora=lora)
    checksum = data_fingerprint({}, adapted.model)["frozen_weights"]
    assert data_fingerprint({}, tiny_classifier(tiny_bert, lora=lora).model)["frozen_weights"] == checksum
    with torch.no_grad():
        next(p for p in adapted.model.parameters() if not p.requires_grad).view(-1)[0] += 1e-3
    assert data_fingerprint({}, adapted.model)["frozen_weights"] != checksum
