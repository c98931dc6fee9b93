"""What the removal of heads does to each row, and the names of heads of classifiers whose heads have known roles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.heads.importance_estimate import Head
from finetune.heads.row_effects import (
    SCREENING_ROWS,
    head_names,
    output_changes,
    random_sets,
    row_effects,
    row_scores,
    screen_pairs,
)
from finetune.models.head_pruning import prune_heads
from tests.heads.test_analysis import case
from tests.models.test_head_gates import bert_lora
from tests.support.helpers import assert_equal_up_to_rounding, sample_of, tiny_classifier
from tests.support.planted_heads import Planted, plant, planted_rows

ROWS = 500


@pytest.fixture(scope="module")
def planted() -> tuple[Planted, GatedRows]:
    roles = plant(1)
    return roles, planted_rows(roles, SCREENING_ROWS + ROWS, 1)


def test_planted_heads_get_their_names(planted: tuple[Planted, GatedRows]) -> None:
    roles, rows = planted
    names, warnings = head_names(
        rows.subset(np.arange(SCREENING_ROWS, SCREENING_ROWS + ROWS)), rows.subset(np.arange(SCREENING_ROWS)), 0
    )
    assert names is not None
    assert (names.rows, names.screening_rows, len(warnings)) == (ROWS, SCREENING_ROWS, 1)
    strong, (harmful,) = roles.sources[:5], roles.sources[5].heads
    expected: dict[Head, tuple[str, Head | None]] = {harmful: ("harmful", None)}
    expected |= dict.fromkeys((*roles.dead, *roles.decoys), ("unused", None))
    for source in strong:
        first, *others = source.heads
        if source.needs_all or not others:
            expected |= dict.fromkeys(source.heads, ("essential", None))
        else:
            expected |= {first: ("redundant", others[0]), others[0]: ("redundant", first)}
    named = {(each.layer, each.head): (each.name, each.partner) for each in names.named}
    assert len(named) == len(names.named)
    assert named.items() <= expected.items()  # the weak head and the rarely needed one have no name
    assert len(expected) == 14
    assert len(named) >= 11  # measured: 12; the power is about 90 % with 500 rows
    assert names.unused_together is not None
    assert names.unused_together.heads == len(roles.dead) + len(roles.decoys)
    assert names.unused_together.change < 1e-4


def test_copies_are_chosen_as_pairs(planted: tuple[Planted, GatedRows]) -> None:
    roles, rows = planted
    pairs = screen_pairs(rows.subset(np.arange(64)), 0)
    assert {tuple(sorted(source.heads)) for source in roles.sources[2:4]} <= set(pairs)
    assert all(first < second for first, second in pairs)
    assert len(set(pairs)) == len(pairs) <= 16


def test_effects_are_those_of_gates(tiny_bert: Path) -> None:
    sample = sample_of(bert_lora(tiny_bert), batch_size=4)
    pairs = [((0, 1), (1, 2)), ((1, 0), (1, 1))]
    effects = row_effects(sample, pairs, seed=5)
    full = gated_logits(sample, sample.gates()).numpy()
    assert_equal_up_to_rounding(effects.scores, row_scores(sample, full[:, None])[:, 0])
    gates = sample.gates()
    gates[1, 2] = 0
    assert_equal_up_to_rounding(effects.scores_without[:, 1, 2], _scores(sample, gates))
    gates[0, 1] = 0
    assert_equal_up_to_rounding(effects.pair_scores[:, 0], _scores(sample, gates))
    kept = torch.from_numpy(~random_sets(sample, 5)).float()
    without = kept.clone()
    without[:, 0, 0] = 1 - without[:, 0, 0]
    first, second = (gated_logits(sample, point).numpy() for point in (kept, without))
    assert_equal_up_to_rounding(effects.context_changes[:, 0, 0], output_changes(sample, first, second[:, None])[:, 0])


def _scores(sample: GatedRows, gates: torch.Tensor) -> np.ndarray:
    return row_scores(sample, gated_logits(sample, gates).numpy()[:, None])[:, 0]


def test_scores_and_changes_by_hand(tiny_bert: Path) -> None:
    classifier, split = case(tiny_bert, "single_label_classification", 2)  # labels 0 and 1 of 3
    sample = sample_of(replace(classifier, temperature=2.0), split=split)
    logits = 2 * np.log([[[0.7, 0.2, 0.1]], [[0.5, 0.25, 0.25]]])
    assert row_scores(sample, logits) == pytest.approx(np.array([[0.7], [0.25]]))
    other = 2 * np.log([[[0.4, 0.5, 0.1]], [[0.5, 0.25, 0.25]]])
    assert output_changes(sample, logits[:, 0], other) == pytest.approx(np.array([[0.3], [0]]))

    classifier, split = case(tiny_bert, "multi_label_classification", 4)
    sample = replace(sample_of(classifier, split=split), rows=np.array([1]))
    probabilities = np.array([[[0.9, 0.8, 0.3]]])
    right = np.where(sample.labels[0] == 1, probabilities, 1 - probabilities).prod()
    assert row_scores(sample, np.log(probabilities / (1 - probabilities))) == pytest.approx(np.array([[right]]))
    other = np.array([[[0.9, 0.5, 0.4]]])
    changes = output_changes(sample, *(np.log(p / (1 - p)) for p in (probabilities[:, 0], other)))
    assert changes == pytest.approx(np.array([[0.3]]))

    classifier, split = case(tiny_bert, "regression", 3)
    sample = sample_of(classifier, split=split)
    spread = sample.labels.std()
    predicted = (sample.labels + spread * np.array([0, 0.5, 3]))[:, None, None]
    assert row_scores(sample, predicted) == pytest.approx(np.array([[1], [0.75], [0]]))
    changes = output_changes(sample, sample.labels[:, None].astype(float), predicted)
    assert changes == pytest.approx(np.array([[0], [0.5], [1]]))


def test_a_layer_without_heads_has_no_names(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    prune_heads(classifier.base, {0: [0, 1, 2], 1: [1]})
    sample = sample_of(classifier)
    names, warnings = head_names(sample, sample, 0)
    assert names is not None
    assert [[value is not None for value in row] for row in names.effects] == [[False, False], [True, True]]
    assert (names.named, names.tests) == ([], 3 * 2 + 2)
    (warning,) = warnings
    assert "with fewer than 1,000 most heads stay undecided" in warning


def test_equal_values_in_a_regression_give_a_warning(tiny_bert: Path) -> None:
    classifier, split = case(tiny_bert, "regression", 3)
    sample = replace(sample_of(classifier, split=split), rows=np.array([0]))
    assert head_names(sample, sample, 0) == (None, ["No head was named: all 1 validation rows have the same value."])
