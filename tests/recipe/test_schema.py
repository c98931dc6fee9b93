"""The keys of a recipe: finetune/recipe/schema.py and the modules of its sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from finetune.recipe.data_section import DataSection
from finetune.recipe.evaluation_section import EvaluationSection, HeadImportanceSection
from finetune.recipe.schema import ModelSection, Recipe

ROWS = [{"sentence": "a", "label": "x"}, {"sentence": "b", "label": "y"}]


def described_keys(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str | None]]:
    """Yield the path and the description of every key."""
    for name, field in section.model_fields.items():
        yield path + name, field.description
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from described_keys(kind, f"{path}{name}.")


def test_every_key_has_a_description() -> None:
    keys = dict(described_keys(Recipe))
    assert len(keys) > 90
    assert "training.learning_rate" in keys
    assert [path for path, description in keys.items() if not description] == []


@pytest.mark.parametrize(
    ("values", "strategy"),
    [({}, None), ({"eval_steps": 5}, "steps"), ({"eval_steps": 5, "eval_strategy": "epoch"}, "epoch")],
)
def test_a_number_of_steps_implies_the_strategy(values: dict[str, object], strategy: str | None) -> None:
    assert EvaluationSection.model_validate(values).eval_strategy == strategy


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ModelSection, {"revision": "main"}, "no source is given; set one of model_name_or_path, model_type"),
        (ModelSection, {"config_overrides": {"hidden_size": 8}}, "no source is given"),
        (ModelSection, {"model_type": "bert", "dtype": "bfloat16"}, "apply only to a pretrained model"),
        (DataSection, {"train_rows": ROWS, "dataset_name": "a/b"}, "dataset_name and train_rows are both given"),
        (DataSection, {"test_rows": ROWS}, "no source is given; set one of dataset_name, train_file, train_rows"),
        (HeadImportanceSection, {"method": ["random", "random"]}, "method is random, random; list each method once"),
        (
            HeadImportanceSection,
            {"leave_one_out": True, "curve_split": None},
            "leave_one_out needs the rows of curve_split",
        ),
        (HeadImportanceSection, {"name_heads": True, "curve_split": None}, "name_heads needs the rows of curve_split"),
    ],
)
def test_keys_that_do_not_fit_together(section: type[BaseModel], values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section.model_validate(values)
