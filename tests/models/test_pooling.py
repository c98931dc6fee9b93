from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.errors import ModelError
from finetune.models import pooled_classifier, pooling
from finetune.models.architectures import FAMILIES
from finetune.models.pooling import (
    choose_pooling,
    family_entries,
    pooling_of,
    sentence_transformers_mode,
    set_pooling,
)

OLD = {"word_embedding_dimension": 24, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
MEAN = {"1_Pooling/config.json": {"pooling_mode": "mean"}}
CLS = {"1_Pooling/config.json": OLD | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}
TUNED = {"architectures": ["BertForSequenceClassification"]}
POOLED = {"finetune_pooling": "cls"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ""),
        (MEAN, "mean"),
        (CLS, "cls"),
        ({"1_Pooling/config.json": OLD}, "mean"),
        ({"1_Pooling/config.json": {"embedding_dimension": 24}}, "mean"),  # the default of sentence-transformers
        ({"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}}, "cls and mean"),
        ({"1_Pooling/config.json": OLD | {"pooling_mode_cls_token": True}}, "cls and mean"),
        ({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "lasttoken"),
        ({"1_Pooling/config.json": [1]}, ""),
        ({"modules.json": [{"type": "x.models.Pooling", "path": "2_P"}], "2_P/config.json": OLD}, "mean"),
        ({"modules.json": [{"type": "x.Pooling", "path": "../other"}], "../other/config.json": OLD}, ""),
        ({"modules.json": {"path": 1}, **CLS}, "cls"),
    ],
)
def test_the_pooling_that_a_sentence_transformers_checkpoint_says(files: Mapping[str, Any], expected: str) -> None:
    assert sentence_transformers_mode(files.get) == expected


@pytest.mark.parametrize(
    ("requested", "model_type", "entries", "files", "expected"),
    [
        ("auto", "bert", {}, MEAN, ("mean", "by the checkpoint's 1_Pooling/config.json")),
        ("auto", "bert", {}, CLS, ("cls", "by the checkpoint's 1_Pooling/config.json")),
        ("auto", "bert", {}, {}, ("head", "the default")),
        ("auto", "bert", TUNED, MEAN, ("head", "the checkpoint is already a classifier")),
        ("auto", "bert", POOLED, MEAN, ("cls", "as the checkpoint was fine-tuned")),
        (
            "auto", "bert", {}, {"1_Pooling/config.json": {"pooling_mode": "max"}},
            ("head", "pooling max of the checkpoint's 1_Pooling/config.json is not supported"),
        ),
        (
            "auto", "multi_head_classifier", {}, MEAN,
            ("head", "the own head of a 'multi_head_classifier' model reads the mean over tokens"),
        ),
        ("auto", "own_code", {}, MEAN, ("head", "'own_code' is not in transformers")),
        ("mean", "bert", TUNED, {}, ("mean", "")),
        ("head", "bert", POOLED, MEAN, ("head", "")),
    ],
)  # fmt: skip
def test_which_pooling_is_chosen_and_why(
    requested: str,
    model_type: str,
    entries: Mapping[str, Any],
    files: Mapping[str, Any],
    expected: tuple[str, str],
) -> None:
    assert choose_pooling(requested, model_type, entries, files.get) == expected


@pytest.mark.parametrize(
    ("requested", "model_type", "entries", "message"),
    [
        ("mean", "multi_head_classifier", {}, r"model\.pooling mean cannot be used: .*; set model\.pooling: head"),
        ("cls", "own_code", {}, r"cannot be used: 'own_code' is not in transformers; set"),
        ("mean", "bert", POOLED, r"model\.pooling is mean, but the checkpoint's .* on pooling cls; set it to cls"),
    ],
)
def test_a_pooling_that_the_checkpoint_does_not_have_is_refused(
    requested: str, model_type: str, entries: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        choose_pooling(requested, model_type, entries, {}.get)


def test_the_config_json_of_a_pooled_classifier_is_read_as_that_of_its_family() -> None:
    saved = {"model_type": "pooled_classifier", "family_model_type": "bert", "finetune_pooling": "mean", "auto_map": {}}
    assert family_entries(saved, "config.json") == {"model_type": "bert", "finetune_pooling": "mean"}
    assert family_entries({"model_type": "bert", "finetune_pooling": "mean"}, "config.json") == {"model_type": "bert"}
    for key, value in (("finetune_pooling", "max"), ("finetune_pooling", None), ("family_model_type", 3)):
        with pytest.raises(ModelError, match=rf"config.json has .*{value!r}.*copy the file from the run again"):
            family_entries(saved | {key: value}, "config.json")


def test_the_pooling_of_a_config() -> None:
    config = SimpleNamespace()
    for value in ("mean", "head", "cls"):
        set_pooling(config, value)
        assert pooling_of(config) == value
        assert hasattr(config, "finetune_pooling") == (value != "head")


def test_the_names_are_those_of_the_file_that_is_saved_with_a_model() -> None:
    assert pooling.POOLED_MODEL_TYPE == pooled_classifier.MODEL_TYPE
    assert pooling.FAMILY_KEY == pooled_classifier.FAMILY_KEY
    assert pooling.POOLING_KEY == pooled_classifier.POOLING_KEY
    assert pooled_classifier.MODEL_TYPE not in FAMILIES
    assert pooled_classifier.__file__.endswith(f"/{pooling.POOLED_CODE}")
