from __future__ import annotations

import numpy as np
import pytest

from finetune.heads.importance_estimate import (
    Estimate,
    as_table,
    last_heads_last,
    layer_normalized,
    mean_over_rows,
    removal_order,
)
from finetune.models.attention_sites import AttentionSite


def site(layer: int, heads: int) -> AttentionSite:
    return AttentionSite(layer, heads, heads, "query", "key", "value", "output")


SITES = [site(0, 3), site(1, 2)]
VALUES = np.array([[3.0, 1.0, 2.0], [0.5, 0.25, np.nan]])


def test_mean_and_its_standard_error() -> None:
    rows = np.array([[[1.0, 5.0]], [[2.0, 5.0]], [[6.0, 5.0]]])  # one layer, two heads
    result = mean_over_rows(rows, "remark")
    np.testing.assert_allclose(result.values, [[3.0, 5.0]])
    np.testing.assert_allclose(result.errors, [[np.sqrt((4 + 1 + 9) / 2 / 3), 0.0]])
    assert result.note == "remark"
    assert mean_over_rows(rows[:1]).errors is None


def test_the_mean_is_computed_in_float64() -> None:
    rows = np.full((100_000, 1, 1), 0.1, dtype=np.float32)
    assert mean_over_rows(rows).values[0, 0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_layers_are_divided_by_their_norm_unless_it_is_zero() -> None:
    result = layer_normalized(
        Estimate(np.array([[3.0, 4.0], [0.0, 0.0], [2.0, np.nan]]), np.ones((3, 2)), note="remark")
    )
    np.testing.assert_allclose(result.values, [[0.6, 0.8], [0.0, 0.0], [1.0, np.nan]])
    np.testing.assert_allclose(result.errors, [[0.2, 0.2], [1.0, 1.0], [0.5, 0.5]])
    assert (result.note, result.contributions) == ("remark", None)


def test_least_important_heads_are_removed_first_and_each_layer_keeps_one() -> None:
    assert removal_order(VALUES, SITES, keep_one=False) == [(1, 1), (1, 0), (0, 1), (0, 2), (0, 0)]
    assert removal_order(VALUES, SITES) == [(1, 1), (0, 1), (0, 2), (1, 0), (0, 0)]


def test_ties_are_removed_in_order_of_index() -> None:
    assert removal_order(np.ones((2, 3)), SITES) == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]


def test_a_single_head_has_an_order() -> None:
    assert removal_order(np.array([[np.nan]]), [site(0, 1)]) == [(0, 0)]


def test_the_last_head_of_each_layer_is_moved_to_the_end_of_the_order() -> None:
    order = [(1, 0), (1, 1), (0, 2), (0, 1), (0, 0)]
    assert last_heads_last(order, SITES) == [(1, 0), (0, 2), (0, 1), (1, 1), (0, 0)]
    assert last_heads_last(last_heads_last(order, SITES), SITES) == last_heads_last(order, SITES)


def test_a_table_has_none_for_a_missing_head_or_value() -> None:
    assert as_table(VALUES, SITES) == [[3.0, 1.0, 2.0], [0.5, 0.25, None]]
    assert as_table(np.array([[1.0, np.nan, 2.0], [3.0, 4.0, 5.0]]), SITES) == [[1.0, None, 2.0], [3.0, 4.0, None]]
    assert as_table(None, SITES) == [[None] * 3, [None] * 3]
