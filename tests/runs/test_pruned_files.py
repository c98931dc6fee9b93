from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.report.card import render_card
from finetune.report.card_metadata import saved_subject
from finetune.runs.pruned_files import has_pruned_parts
from tests.report.test_card import record

WEIGHTS, INFO = "config.json", "classifier.json"


@pytest.mark.parametrize(
    ("files", "pruned"),
    [
        ({WEIGHTS: {"model_type": "bert"}, INFO: {"base_is_pruned": False}}, False),
        ({WEIGHTS: {"pruned_heads": {}}, INFO: {}}, False),
        ({WEIGHTS: {"pruned_heads": {"1": [0]}}}, True),
        ({WEIGHTS: {"feed_forward_sizes": {"0": 0}}, INFO: {}}, True),
        ({INFO: {"base_is_pruned": True}}, True),
        ({}, False),
        ({WEIGHTS: [], INFO: None}, False),
    ],
)
def test_the_card_knows_from_the_files_of_the_model_that_parts_were_removed(
    tmp_path: Path, files: dict[str, Any], pruned: bool
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert has_pruned_parts(tmp_path) == pruned
    run = record()
    card = render_card(run, saved_subject("films", tmp_path, run.recipe))
    assert ("library_name: finetune" in card) == ("Transformers alone cannot load this model" in card) == pruned
    assert ("from transformers import pipeline" in card) != pruned
