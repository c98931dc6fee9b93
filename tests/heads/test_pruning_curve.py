from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads import pruning_curve
from finetune.heads.gated_forward import gated_logits
from finetune.heads.pruning_curve import (
    SHARES,
    CurveSettings,
    gates_without,
    pruning_curves,
    random_order,
    removed,
    scorer,
)
from finetune.models.head_pruning import prune_heads
from tests.models.test_head_gates import bert, zero_columns
from tests.support.helpers import encoded, sample_of
from tests.support.known_head import THE_HEAD, known_head

ORDER = [(1, 2), (0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]  # least important first, each layer's last head last


def test_the_number_of_removed_heads_is_rounded_to_the_nearest_integer() -> None:
    assert [len(removed(ORDER, share)) for share in SHARES] == [1, 1, 2, 2, 3, 4, 4, 5, 5]
    assert removed(ORDER, 0.3) == ORDER[:2]
    assert removed(list(range(72)), 0.9) == list(range(65))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", range(7))
def test_scores_equal_those_of_a_model_with_zeroed_columns(tiny_bert: Path, count: int) -> None:
    torch.manual_seed(count)
    sample = sample_of(bert(tiny_bert))
    gates = gates_without(sample, ORDER[:count])
    assert int((gates == 0).sum()) == count
    gated, score = gated_logits(sample, gates), scorer(sample, "f1_macro")(gates)
    curves = pruning_curves(sample, {"known": ORDER}, CurveSettings("f1_macro", random_orders=0, shares=[count / 6]))
    for layer, head in ORDER[:count]:
        zero_columns(sample.classifier.base.get_submodule(sample.sites[layer].output), slice(8 * head, 8 * head + 8))
    plain = gated_logits(sample, sample.gates())
    torch.testing.assert_close(gated, plain, rtol=0, atol=0)
    labels, predicted = sample.labels, plain.argmax(-1).numpy()
    f1 = [
        2 * ((predicted == c) & (labels == c)).sum() / max(1, (predicted == c).sum() + (labels == c).sum())
        for c in (0, 1)
    ]
    assert score == pytest.approx(np.mean(f1))
    assert curves.curves[0].scores == [score]
    assert curves.random is None


def test_curve_reversed_curve_and_random_band_use_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = known_head(32)
    score = scorer(sample, "accuracy")
    order = [(0, 0), (0, 3), (0, 1), THE_HEAD]
    orders = {"best": order, "worst": order[::-1]}
    curves = pruning_curves(sample, orders, CurveSettings("accuracy", random_orders=3, seed=7))
    assert (curves.metric, curves.split, curves.rows, curves.whole) == ("accuracy", "validation", 32, 1.0)
    assert curves.shares == list(SHARES)

    def by_hand(heads: list[tuple[int, int]]) -> list[float]:
        return [score(gates_without(sample, heads[: min(round(share * 4), 3)])) for share in SHARES]

    best, worst = curves.curves
    assert (best.method, worst.method) == ("best", "worst")
    assert best.scores == by_hand(order)
    assert worst.scores == by_hand(order[::-1])
    assert best.by_count == [score(gates_without(sample, order[:count])) for count in (1, 2, 3)]
    assert best.mean == worst.reverse == pytest.approx(np.mean(best.scores))
    assert best.reverse == worst.mean < best.mean
    assert best.reverse_scores == worst.scores
    band = np.array([by_hand(random_order(sample, 7 + number)) for number in range(3)])
    assert curves.random is not None
    assert curves.random.orders == 3
    assert curves.random.mean_scores == pytest.approx(band.mean(0))
    assert (curves.random.low, curves.random.high) == (band.min(0).tolist(), band.max(0).tolist())
    assert curves.random.mean == pytest.approx(band.mean())
    assert curves.random.spread == pytest.approx(band.mean(1).std(ddof=1))
    assert len({tuple(row) for row in band}) > 1
    single_order = pruning_curves(sample, {"best": order}, CurveSettings("accuracy", random_orders=1, reverse=False))
    assert single_order.random is not None
    assert single_order.random.spread is None
    assert single_order.curves[0].reverse is None
    assert single_order.curves[0].reverse_scores == []


def test_the_reversed_order_also_keeps_the_last_head_of_each_layer(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, removals = sample_of(bert(tiny_bert)), []
    original = pruning_curve.gates_without
    monkeypatch.setattr(
        pruning_curve,
        "gates_without",
        lambda sample, heads: removals.append(list(heads)) or original(sample, heads),
    )
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)]
    pruning_curves(sample, {"known": order}, CurveSettings("accuracy", random_orders=0, shares=[4 / 6]))
    # Simply reversed, the fourth removed head would be 1.0, the last of its layer.
    assert removals[:2] == [sorted(order[:4]), [(0, 1), (0, 2), (1, 1), (1, 2)]]


def test_random_orders_keep_a_head_in_each_layer_and_follow_the_seed(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    prune_heads(classifier.base, {0: [1]})
    sample = sample_of(classifier)
    orders = [random_order(sample, seed) for seed in range(20)]
    for order in orders:
        assert sorted(order) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        assert {layer for layer, _ in order[-2:]} == {0, 1}
    assert orders[3] == random_order(sample, 3)
    assert len({tuple(order) for order in orders}) > 10


def test_errors_are_negated_so_that_higher_is_better(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = bert(tiny_bert)
    monkeypatch.setattr(classifier.base.config, "problem_type", "regression")
    classifier.base.classifier = torch.nn.Linear(24, 1)
    values = np.array([0.5, -1.0, 2.0, 0.0, 1.0, 3.0])
    sample = sample_of(classifier, split=replace(encoded(classifier), labels=values))
    gates = gates_without(sample, ORDER[:3])
    predicted = gated_logits(sample, gates)[:, 0].numpy()
    assert scorer(sample, "mean_squared_error")(gates) == pytest.approx(-((predicted - values) ** 2).mean(), rel=1e-5)
    assert scorer(sample, "mean_absolute_error")(gates) == pytest.approx(-np.abs(predicted - values).mean(), rel=1e-5)
    expected = np.corrcoef(predicted, values)[0, 1]
    assert scorer(sample, "pearson")(gates) == pytest.approx(expected, rel=1e-5)
    curves = pruning_curves(sample, {"known": ORDER}, CurveSettings("mean_squared_error", random_orders=2))
    assert curves.whole < 0
    assert max(curves.curves[0].scores) < 0


def test_a_model_with_one_prediction_for_all_rows_has_a_score() -> None:
    sample = known_head(8)
    with torch.no_grad():
        sample.classifier.base.classifier.weight.zero_()
    assert scorer(sample, "matthews_correlation")(sample.gates()) == 0.0


def test_an_undefined_correlation_counts_as_zero_in_a_curve(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = bert(tiny_bert)
    monkeypatch.setattr(classifier.base.config, "problem_type", "regression")
    classifier.base.classifier = torch.nn.Linear(24, 1)
    torch.nn.init.zeros_(classifier.base.classifier.weight)
    sample = sample_of(classifier, split=replace(encoded(classifier), labels=np.arange(6.0)))
    assert scorer(sample, "pearson")(sample.gates()) == 0.0
    assert scorer(sample, "mean_squared_error")(sample.gates()) < 0
