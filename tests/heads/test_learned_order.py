from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads import learned_order as module
from finetune.heads.gated_forward import GatedRows, row_losses
from finetune.heads.gradients import gradient_layer_norm
from finetune.heads.importance_estimate import removal_order
from finetune.heads.learned_order import draw_masks, initial_scores, learned_order
from finetune.heads.pruning_curve import CurveSettings, gates_without, pruning_curves
from finetune.models.head_pruning import prune_heads
from finetune.recipe.head_costs import BATCH
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
    result = learned_order(sample.subset(np.arange(32)), 400)
    order = removal_order(result.values, sample.sites)
    assert order[-1] == THE_HEAD
    unseen = sample.subset(np.arange(32, 64))
    curves = pruning_curves(unseen, {"learned": order}, CurveSettings("accuracy", random_orders=6))
    assert curves.random is not None
    assert curves.curves[0].scores[:-1] == [1.0] * 8  # 90 % of four heads rounds to all
    assert curves.random.mean < 0.9 < curves.curves[0].mean


def test_learning_corrects_a_wrong_start(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = known_head(32)
    wrong = torch.tensor([[[0.0, 0.4, -0.8, 0.8]]])  # THE_HEAD is removed first
    monkeypatch.setattr(module, "initial_scores", lambda *args: wrong.expand(4, 1, 4))

    def mean_loss(values: np.ndarray) -> float:
        order = removal_order(values, sample.sites)
        return float(np.mean([row_losses(sample, gates_without(sample, order[:n])).mean() for n in (1, 2, 3)]))

    learned = learned_order(sample).values
    assert removal_order(learned, sample.sites)[-1] == THE_HEAD
    assert mean_loss(learned) < mean_loss(wrong[0].numpy()) - 0.5


@pytest.mark.parametrize(("row_passes", "steps"), [(1, 0), (63, 0), (191, 0), (192, 1), (500, 3)])
def test_no_more_row_passes_than_the_budget(row_passes: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, passes = known_head(64), list[np.ndarray]()

    def counted(rows: GatedRows, *gates: torch.Tensor) -> np.ndarray:
        passes.append(rows.rows)
        return np.random.default_rng(0).random((len(rows), 1, 4))

    monkeypatch.setattr(module, "gate_gradients", counted)
    result = learned_order(sample, row_passes)
    start = min(64, row_passes)
    assert [len(rows) for rows in passes] == [start, *[4 * BATCH] * steps]
    assert sum(map(len, passes)) <= row_passes
    drawn = np.concatenate([*passes[1:], np.array([], dtype=int)])
    assert np.ptp(np.bincount(drawn, minlength=64)) <= 1  # no row is used twice before all are used once
    assert result.note == f"initial scores from {start} rows; 4 folds, steps of 32 rows per fold: {steps}"


def test_each_fold_learns_from_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, passes = known_head(64), list[np.ndarray]()

    def counted(rows: GatedRows, *gates: torch.Tensor) -> np.ndarray:
        passes.append(rows.rows)
        return np.random.default_rng(0).random((len(rows), 1, 4))

    monkeypatch.setattr(module, "gate_gradients", counted)
    learned_order(sample, 700)
    folds = [set(np.concatenate(fold)) for fold in zip(*(np.split(rows, 4) for rows in passes[1:]), strict=True)]
    assert [len(fold) for fold in folds] == [16] * 4
    assert set.union(*folds) == set(range(64))
    # The initial scores of a fold come from rows of this fold.
    assert [set(passes[0][fold::4]) for fold in range(4)] == folds


def test_a_small_budget_gives_the_order_of_the_gradient(tiny_bert: Path) -> None:
    sample = sample_of(bert(tiny_bert))
    values = learned_order(sample, 100).values
    assert removal_order(values, sample.sites) == removal_order(gradient_layer_norm(sample).values, sample.sites)


def test_folds_start_apart_and_their_mean_is_the_order_of_all_rows(tiny_bert: Path) -> None:
    sample, folds = sample_of(bert(tiny_bert)), np.array([0, 1, 2, 0, 1, 2])
    scores = initial_scores(sample, folds, 4)  # no row of the last fold
    ranks = gradient_layer_norm(sample).values.ravel().argsort().argsort().reshape(2, 3)
    torch.testing.assert_close(scores.mean(0), torch.tensor(4 * ((ranks + 1) / 6 - 0.5)).float())
    own = [gradient_layer_norm(sample.subset(sample.rows[folds == fold])).values for fold in range(3)]
    own_ranks = torch.tensor(np.stack([values.ravel().argsort().argsort() for values in [*own, ranks]])).reshape(
        4, 2, 3
    )
    difference = scores - 4 * own_ranks / 6
    torch.testing.assert_close(difference, difference[:1].expand(4, 2, 3), atol=1e-5, rtol=1e-5)


def test_a_step_is_adam_with_one_scale_for_all_heads() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    trainer, optimizer_mean, square = module.ScoreTrainer(torch.zeros(2, 3), mask), torch.zeros(2, 3), 0.0
    expected = torch.zeros(2, 3)
    for step in range(1, 4):
        gradient = torch.randn(2, 3)
        trainer.step(gradient, rate=0.2)
        direction = torch.where(mask, gradient - gradient[mask].mean(), 0)
        optimizer_mean = 0.9 * optimizer_mean + 0.1 * direction
        square = 0.95 * square + 0.05 * float(direction[mask].square().mean())
        expected = expected - 0.2 * (optimizer_mean / (1 - 0.9**step)) / (square / (1 - 0.95**step)) ** 0.5
    torch.testing.assert_close(trainer.scores, expected)
    assert trainer.scores[1, 2] == 0  # not a head


def test_folds_give_errors_and_one_row_gives_none(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    prune_heads(classifier.base, {1: [0, 1, 2]})
    sample = sample_of(classifier)
    result, single_row = learned_order(sample, 270), learned_order(sample.subset(sample.rows[:1]), 40)
    assert result.errors is not None
    assert result.folds is not None
    assert single_row.errors is None
    for table in (result.values, result.errors, single_row.values, *result.folds):
        assert np.isnan(table).tolist() == [[False] * 3, [True] * 3]
    np.testing.assert_allclose(result.values, result.folds.mean(0), atol=1e-12)
    np.testing.assert_allclose(result.errors, result.folds.std(0, ddof=1) / 2, atol=1e-12)
    same = learned_order(sample, 270)
    np.testing.assert_array_equal(same.values, result.values)
