from __future__ import annotations

import pytest

from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.recipe.head_costs import (
    MIN_ROW_PASSES,
    PASSES_PER_ROW,
    ROW_PASSES,
    TRAINED_ROW,
    Cost,
    TrainingCost,
    cost_line,
    cost_table,
    curve_cost,
    explanation_cost,
    method_cost,
    scored_rounds,
    training_cost,
)
from finetune.recipe.names import HEAD_METHOD_NAMES, HEAD_METHODS, default_rows


def test_every_method_has_its_passes() -> None:
    assert [*PASSES_PER_ROW, "learned_order"] == [name for name in HEAD_METHODS if name != "learned_order"] + [
        "learned_order"
    ]
    table = cost_table().splitlines()
    assert [line.split("`")[1] for line in table[2:]] == list(HEAD_METHOD_NAMES)


def test_default_rows_keep_every_method_cheap_but_shapley() -> None:
    """No method costs a quarter of a training on 20,000 rows, but Shapley values."""
    training = training_cost(20_000, 1)
    costs = {name: method_cost(name, default_rows(name), 72, 8).total() for name in HEAD_METHOD_NAMES}
    expensive = {name for name, cost in costs.items() if cost > training.row_passes / 4}
    assert expensive == {"shapley", "iterative_shapley"}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("gradient", Cost(100, 16)),
        ("integrated_gradients", Cost(800, 216)),
        ("iterative_integrated_gradients", Cost(7200, 16)),
        ("ablation_kl", Cost(0, 7316, part=1 / 3)),
        ("iterative_gradient", Cost(900, 16)),
        ("learned_order", Cost(100 + 128, 16, is_limit=True)),
        ("random", Cost(0, 16)),
    ],
)
def test_the_cost_of_a_method(method: str, expected: Cost) -> None:
    assert method_cost(method, 100, 72, 8, 300) == expected


def test_an_iterative_variant_scores_nine_times_and_less_often_with_few_heads() -> None:
    assert scored_rounds(72) == scored_rounds(10) == 9
    assert scored_rounds(4) == 4
    assert scored_rounds(1) == 1


def test_the_allowed_row_passes_are_a_share_of_the_training_between_two_limits() -> None:
    training = training_cost(300, 16)
    assert (training.rows, training.row_passes) == (4800, pytest.approx(4800 * TRAINED_ROW))
    assert training.allowed(0.05) == 264
    assert training.allowed(0.1) == 528
    assert training.allowed(1.0) == ROW_PASSES
    assert training_cost(4, 15).allowed(0.05) == MIN_ROW_PASSES
    assert training.allowed(None) is None


def test_frozen_layers_make_the_training_cheaper() -> None:
    full, frozen = training_cost(1000, 3), training_cost(1000, 3, frozen_layers=0.5)
    cached = training_cost(1000, 3, frozen_layers=0.5, cached=True)
    assert full.rows == frozen.rows == cached.rows == 3000
    assert frozen.row_passes == pytest.approx(full.row_passes * (1 + 2 * 0.5) / 3)
    # The frozen half is computed in one epoch of three.
    assert cached.row_passes == pytest.approx(full.row_passes * ((0.5 / 3 + 0.5) + 2 * 0.5) / 3)
    assert training_cost(1000, 0.5, frozen_layers=1.0, cached=True).row_passes > 0


def test_curves_and_explanations() -> None:
    assert curve_cost(300, 5, 9, 0) == Cost(0, 13_800, is_limit=True)
    assert explanation_cost(256, 40, 72, 12) == Cost(256 + 480, 40 * 27)


def test_a_line_names_passes_share_and_time() -> None:
    training = TrainingCost(10_000, 12_500)
    line = cost_line("gradient on 256 train rows", Cost(1250, 500), training, 0.01)
    assert (
        line == "gradient on 256 train rows: 1,250 row passes and 500 forward passes, 12 % of the training, about 15 s"
    )
    assert cost_line("x", Cost(0, 50_000, is_limit=True), training, None) == (
        "x: at most 50,000 forward passes, 2.0 times the training"
    )
    assert cost_line("x", Cost(125), training, None) == "x: 125 row passes, 1 % of the training"
    assert cost_line("x", Cost(125), None, 0.1) == "x: 125 row passes, about 12 s"
    assert cost_line("x", Cost(), training, 0.1) == "x: no passes"


def test_a_method_can_have_settings_of_its_own() -> None:
    own = {"name": "integrated_gradients", "max_samples": 128, "integration_steps": 16}
    section = HeadImportanceSection(method=["learned_order", own, {"name": "gradient", "max_samples": None}])  # type: ignore[list-item]
    assert section.methods() == ["learned_order", "integrated_gradients", "gradient"]
    rows_and_steps = {name: section.settings_of(name) for name in (*section.methods(), "iterative_gradient")}
    assert {name: (s.max_samples, s.integration_steps) for name, s in rows_and_steps.items()} == {
        "learned_order": (256, 8),
        "integrated_gradients": (128, 16),
        "gradient": (None, 8),
        "iterative_gradient": (128, 8),
    }
    assert HeadImportanceSection(**section.model_dump(mode="json")) == section
    for_all = HeadImportanceSection(method="iterative_gradient", max_samples=50, integration_steps=4)
    assert (
        for_all.settings_of("iterative_gradient").max_samples,
        for_all.settings_of("gradient").integration_steps,
    ) == (50, 4)
