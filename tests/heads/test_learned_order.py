from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads import learned as module
from finetune.heads.gated_forward import row_losses
from finetune.heads.importance_estimate import removal_order
from finetune.heads.learned import draw_masks, learned_order
from finetune.heads.pruning_curve import CurveSettings, pruning_curves
from finetune.models.head_pruning import prune_heads
from tests.models.test_head_gates import bert
from tests.support.helpers import sample_of
from tests.support.known_head import THE_HEAD, known_head


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kept_shares_are_uniform_between_5_and_95_percent() -> None:
    masks, _ = draw_masks(
        torch.randn(1, 100, generator=generator(5)), 400, generator()
    )  # one layer, so no other head is kept
    kept = np.sort(masks.sum((1, 2)).numpy())
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    # Each row has its own 400th of the range. Measured: at most .5 heads off, which is rounding.
    np.testing.assert_allclose(kept, 5 + 90 * (np.arange(400) + 0.5) / 400, atol=0.7)
    assert (kept[0], kept[-1]) == (5, 95)


def test_the_best_heads_and_the_best_of_each_layer_are_kept() -> None:
    # Too far apart for noise to change the order: all of layer 0 is above layer 1, which is above layer 2.
    scores = 1000 * torch.tensor([[9.0, 8.0, 7.0, 6.0], [2.0, 5.0, 4.0, 3.0], [1.0, 0.0, -1.0, -2.0]])
    masks, weights = draw_masks(scores, 60, generator())
    counts = set()
    for mask in masks:
        remaining = set(scores[mask > 0].tolist())
        best_only = {9000.0, 5000.0, 1000.0}
        count = len(remaining - best_only)
        ranked = sorted(scores.flatten().tolist(), reverse=True)
        matching = [k for k in range(1, 13) if remaining == set(ranked[:k]) | best_only]
        assert matching, (remaining, count)
        counts.update(matching)
    assert counts == set(range(1, 12))
    assert (masks[:, [0, 1, 2], [0, 1, 0]] == 1).all()
    assert float(weights.max()) < 1e-6  # far from any threshold


def test_the_weight_is_the_slope_at_the_threshold() -> None:
    # Of two heads one is removed: the threshold is midway between their noisy scores.
    masks, weights = draw_masks(torch.tensor([[0.1, 0.0]]), 500, generator())
    one_kept = masks.sum((1, 2)) == 1
    assert int(one_kept.sum()) > 300
    slopes = weights[one_kept][:, 0]  # (rows, 2)
    torch.testing.assert_close(slopes[:, 0], slopes[:, 1], atol=1e-5, rtol=1e-5)  # both are equally far from it
    assert 0 < float(slopes.min()) < 0.5 < float(slopes.max()) <= 1
    _, tied_weights = draw_masks(torch.zeros(1, 1), 5, generator())
    torch.testing.assert_close(tied_weights, torch.ones(5, 1, 1))  # exactly at the threshold


def test_masks_follow_the_seed() -> None:
    scores = torch.randn(3, 4, generator=generator(1))
    first, same, other = (draw_masks(scores, 20, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], same[0])
    assert torch.equal(first[1], same[1])
    assert not torch.equal(first[0], other[0])
    assert len({tuple(mask.flatten().tolist()) for mask in first[0]}) > 10  # each row has its own


def test_missing_heads_are_not_sampled_or_counted() -> None:
    scores = torch.zeros(2, 50)
    scores[1, 3:] = -math.inf
    masks, weights = draw_masks(scores, 300, generator())
    assert (masks[:, 1, 3:] == 0).all()
    assert (weights[:, 1, 3:] == 0).all()
    kept = masks.sum((1, 2))
    assert torch.isfinite(weights).all()
    assert (float(kept.min()), float(kept.max())) == (
        4,
        50,
    )  # of 53 heads: round(2.65) and the best of the other layer; round(50.35)


def test_the_learned_order_is_better_than_random_orders() -> None:
    sample = known_head(64)
    result = learned_order(sample.subset(np.arange(32)), 10)
    order = removal_order(result.values, sample.sites)
    assert order[-1] == THE_HEAD
    unseen = sample.subset(np.arange(32, 64))
    curves = pruning_curves(unseen, {"learned": order}, CurveSettings("accuracy", random_orders=6))
    assert curves.random is not None
    assert curves.curves[0].scores[:-1] == [1.0] * 8  # 90 % of four heads rounds to all
    assert curves.random.mean < 0.9 < curves.curves[0].mean


def test_learning_lowers_the_loss_over_all_shares(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sample = sample_of(bert(tiny_bert))
    initial = {"values": np.random.default_rng(0).random((2, 3))}
    monkeypatch.setattr(module, "gradient_layer_norm", lambda sample: type("Start", (), initial)())  # a random start

    def mean_loss(values: np.ndarray) -> float:
        order, gates, losses = removal_order(values, sample.sites), sample.gates(), []
        for cell in order[:-2]:
            gates[cell] = 0
            losses.append(row_losses(sample, gates).mean())
        return float(np.mean(losses))

    learned = module._learn_scores(sample, 60, 0, iter(range(60)))
    assert mean_loss(learned) < mean_loss(initial["values"]) - 0.05
    assert mean_loss(learned) < mean_loss(-learned) - 0.05


def test_folds_give_errors_and_one_row_gives_none(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    prune_heads(classifier.base, {1: [0]})
    sample = sample_of(classifier)
    result, single_row = learned_order(sample, 3), learned_order(sample.subset(sample.rows[:1]), 1)
    assert result.errors is not None
    assert single_row.errors is None
    for table in (result.values, result.errors, single_row.values):
        assert np.isnan(table).tolist() == [[False] * 3, [False, False, True]]
    assert result.note == "4 folds of 1 rows, at most 3 steps of 32 rows each"
    same = learned_order(sample, 3)
    np.testing.assert_array_equal(same.values, result.values)
