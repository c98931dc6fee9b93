"""The passes that a head analysis makes, counted, and the lines that announce them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from finetune.heads import methods
from finetune.heads.analysis import AnalysisSettings
from finetune.heads.expected_costs import expected_costs
from finetune.heads.gated_forward import GatedRows
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import CurveSettings, pruning_curves
from finetune.heads.row_effects import head_names
from finetune.heads.shapley import shapley_values
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.recipe.head_costs import CHECKED_ROWS, TrainingCost, curve_cost, method_cost, names_cost
from finetune.recipe.names import HEAD_METHOD_NAMES
from tests.support.known_head import known_head

HEADS, STEPS = 4, 2


@pytest.fixture(scope="module")
def known() -> GatedRows:
    return known_head(64)


@contextmanager
def counted(sample: GatedRows) -> Iterator[Counter[str]]:
    """Count the rows of all forward passes inside the block: with gradients, and without."""
    passes: Counter[str] = Counter()

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passes["row" if torch.is_grad_enabled() else "forward"] += len(kwargs["input_ids"])

    handle = sample.classifier.base.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize("method", HEAD_METHOD_NAMES)
def test_the_expected_passes_are_the_counted_ones(
    known: GatedRows, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    never_converges = partial(shapley_values, precision=0.0)
    monkeypatch.setattr(methods, "shapley_values", never_converges)
    rows = CHECKED_ROWS + 4
    with counted(known) as passes:
        measure_importance(known.subset(known.rows[:rows]), method, steps=STEPS, seed=0, row_passes=90)
    expected = method_cost(method, rows, HEADS, STEPS, 90)
    extra_rows, extra_forward = passes["row"] - expected.row_passes, passes["forward"] - expected.forward_passes
    if method == "iterative_shapley":  # without the important head all values are 0, which converges
        assert extra_rows == 0
        assert -expected.forward_passes < extra_forward < 0
    else:
        assert extra_rows == 0
        # Ablation first tries on the longest and the shortest row whether layers can be shared.
        assert 0 <= extra_forward <= (0.5 * expected.forward_passes if "ablation" in method else 0)


@pytest.mark.parametrize("row_passes", [64, 150, 300, 1024])
def test_learned_order_keeps_to_its_row_passes(known: GatedRows, row_passes: int) -> None:
    with counted(known) as passes:
        scores = measure_importance(known, "learned_order", steps=STEPS, seed=0, row_passes=row_passes)
    expected = method_cost("learned_order", len(known), HEADS, STEPS, row_passes).row_passes
    assert row_passes - 128 < passes["row"] == expected <= row_passes
    assert len(scores.order) == HEADS


def test_the_passes_of_the_pruning_curves(known: GatedRows) -> None:
    order = [(0, head) for head in range(HEADS)]
    with counted(known) as passes:
        pruning_curves(known, {"a": order, "b": order[::-1]}, CurveSettings("accuracy", random_orders=2))
    expected = curve_cost(len(known), 6, 9, 2 * (HEADS - 1))
    assert passes["row"] == 0
    # With four heads many orders remove the same heads, which are scored once: at most 15 sets of them.
    assert 6 * len(known) < passes["forward"] <= 15 * len(known) < expected.forward_passes
    passes.clear()
    sample = known.subset(known.rows[:8])
    with counted(sample) as passes:
        pruning_curves(sample, {"a": order}, CurveSettings("accuracy", 0, reverse=False, shares=(0.25, 0.5)))
    assert passes["forward"] == 4 * len(sample)  # all heads, and 1, 2 and 3 of them removed


def test_the_passes_of_the_names(known: GatedRows) -> None:
    tests, screening = known.subset(known.rows[:40]), known.subset(known.rows[40:])
    with counted(known) as passes:
        head_names(tests, screening, seed=0)
    expected = names_cost(len(tests), len(screening), HEADS)
    assert passes["row"] == expected.row_passes
    assert 0 < passes["forward"] <= expected.forward_passes


def test_the_lines_name_every_part_and_the_limit(known: GatedRows) -> None:
    section = HeadImportanceSection(
        method=["learned_order", {"name": "integrated_gradients", "max_samples": 16, "integration_steps": 4}],  # type: ignore[list-item]
        random_orders=1,
        leave_one_out=True,
        name_heads=True,
        explained_rows=3,
    )
    splits = {"train": known.split, "validation": known.split}
    settings = AnalysisSettings("accuracy", batch_size=16, seed=0, training=TrainingCost(2000, 2500))
    first, *lines = expected_costs(known.classifier, splits, section, settings, known.accelerator)
    assert first.endswith("; the training of 2,000 rows took as long as 2,500 row passes:")
    expected = [
        r"learned_order on 64 train rows: at most 64 row passes and 16 forward passes, 2.9 % of the training, about "
        r".* \(limited by head_importance.max_cost: 0.05; the full number is 1,024\)",
        "integrated_gradients on 16 train rows: 64 row passes and 48 forward passes, 3.5 % of the training, about .*",
        "pruning curves on 64 validation rows: at most 3,328 forward passes, 67 % of the training, about .*",
        "leave-one-out on 64 validation rows: 336 forward passes, 2.2 % of the training, about .*",
        "names of heads on 64 validation rows: at most 320 row passes and 896 forward passes, 19 % of the training, "
        "about .*",
        "explanations of 64 validation rows: 100 row passes and 15 forward passes, 4.3 % of the training, about .*",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line.strip()), line
    unknown = replace(settings, training=None)
    first, *lines = expected_costs(known.classifier, splits, section, unknown, known.accelerator)
    assert first.endswith("(a forward and a backward pass of one row):")
    assert lines[0].startswith("  learned_order on 64 train rows: at most 960 row passes and 16 forward passes, about")
