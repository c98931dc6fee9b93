"""Shapley values against the enumeration of all orders of a model of two layers with two heads."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from finetune.errors import ModelError
from finetune.heads import shapley
from finetune.heads.gated_forward import GatedRows
from finetune.heads.shapley import shapley_values
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_gates
from tests.support.helpers import assert_equal_up_to_rounding, sample_of, tiny_classifier

PLAYERS = list(itertools.product(range(2), range(2)))


def four_heads(tiny_bert: Path, problem_type: str = "single_label_classification") -> Classifier:
    """Return a classifier of two layers with two heads each, with the tokenizer of the checkpoint."""
    torch.manual_seed(5)
    classifier = tiny_classifier(tiny_bert)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    config = BertConfig(**{**classifier.base.config.to_dict(), **sizes, "problem_type": problem_type})
    return replace(classifier, model=BertForSequenceClassification(config).eval())


@pytest.fixture
def sample(tiny_bert: Path) -> GatedRows:
    return sample_of(four_heads(tiny_bert), batch_size=4)


def exact_shapley_values(sample: GatedRows) -> np.ndarray:
    """Return the Shapley values of each row (N, 2, 2), summed over all coalitions of other heads, in float64."""
    base = sample.classifier.base
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    base.double()
    payoffs: dict[tuple[bool, ...], np.ndarray] = {}
    for mask in itertools.product([False, True], repeat=4):
        losses = []
        for row in sample.rows:
            gates = torch.tensor(mask, dtype=torch.float64).reshape(2, 2)
            ids = torch.tensor([sample.split.rows["input_ids"][int(row)]])
            with torch.no_grad(), head_gates(base, attention_sites(base), gates):
                logits = base(input_ids=ids).logits
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([sample.split.labels[row]]))))
        payoffs[mask] = -np.array(losses)
    base.float().load_state_dict(weights)
    values = np.zeros((len(sample), 4))
    for player in range(4):
        for coalition, value in payoffs.items():
            if not coalition[player]:
                joined = tuple(is_present or index == player for index, is_present in enumerate(coalition))
                size = sum(coalition)
                weight = math.factorial(size) * math.factorial(3 - size) / math.factorial(4)
                values[:, player] += weight * (payoffs[joined] - value)
    return values.reshape(-1, 2, 2)


def all_orders(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the rounds use all orders, each once with its reverse, and return the number of orders."""
    orders = [order for order in itertools.permutations(range(4)) if order < order[::-1]]
    assert len(orders) == 12
    monkeypatch.setattr(shapley, "_orders", lambda rows, players, seed, number: np.array([orders[number]] * rows))
    return 2 * len(orders)


def test_all_orders_give_the_exact_values(sample: GatedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exact_shapley_values(sample)
    result = shapley_values(sample, max_permutations=all_orders(monkeypatch), precision=0.0)
    assert (result.permutations, result.converged) == (24, False)
    assert_equal_up_to_rounding(result.contributions, exact)  # float32 against float64
    assert np.abs(exact).min() > 1e-4


def test_random_orders_approximate_the_exact_values(sample: GatedRows) -> None:
    exact = exact_shapley_values(sample).mean(0)
    result = shapley_values(sample, max_permutations=64, precision=0.0)
    assert result.permutations == 64
    assert result.standard_errors is not None
    distance = np.abs(result.values - exact) / result.standard_errors
    assert distance.max() < 4  # measured 2.3, over four heads
    assert result.standard_errors.max() < 0.1 * np.ptp(exact)


def test_the_values_of_each_round_sum_to_the_effect_of_all_heads(sample: GatedRows) -> None:
    base, sites = sample.classifier.base, sample.sites
    for most, seed in ((2, 0), (2, 1), (6, 2)):
        result = shapley_values(sample, max_permutations=most, seed=seed)
        for place, row in enumerate(sample.rows):
            ids, label = torch.tensor([sample.split.rows["input_ids"][int(row)]]), int(sample.labels[place])
            loss = {}
            for gate in (0.0, 1.0):
                with torch.no_grad(), head_gates(base, sites, torch.full((2, 2), gate)):
                    loss[gate] = -float(base(input_ids=ids).logits.log_softmax(-1)[0, label])
            # The row alone, without padding, in float32: losses are of a few nats.
            assert result.contributions[place].sum() == pytest.approx(loss[0.0] - loss[1.0], abs=1e-4)


def test_a_head_with_zero_values_has_a_shapley_value_of_zero(sample: GatedRows) -> None:
    value = sample.classifier.base.get_submodule(sample.sites[1].value)
    with torch.no_grad():
        value.weight[:8] = 0  # head 0 of width 8
        value.bias[:8] = 0
    result = shapley_values(sample, max_permutations=8)
    assert (result.contributions[:, 1, 0] == 0).all()
    assert (np.delete(result.contributions.reshape(6, 4), 2, axis=1) != 0).all()


def test_identical_heads_have_equal_shapley_values(sample: GatedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    base, site = sample.classifier.base, sample.sites[0]
    with torch.no_grad():
        for path in site.paths(("query", "key", "value")):
            module = base.get_submodule(path)
            module.weight[8:], module.bias[8:] = module.weight[:8].clone(), module.bias[:8].clone()
        output = base.get_submodule(site.output).weight
        output[:, 8:] = output[:, :8].clone()
    result = shapley_values(sample, max_permutations=all_orders(monkeypatch), precision=0.0)
    assert_equal_up_to_rounding(result.contributions[:, 0, 0], result.contributions[:, 0, 1])
    assert np.abs(result.contributions[:, 1, 0] - result.contributions[:, 1, 1]).max() > 1e-4


def test_sampling_stops_at_the_requested_precision(sample: GatedRows) -> None:
    loose = shapley_values(sample, max_permutations=200, precision=0.2)
    tight = shapley_values(sample, max_permutations=200, precision=0.05)
    assert loose.converged
    assert tight.converged
    assert 4 <= loose.permutations < tight.permutations < 200
    assert tight.standard_errors is not None
    assert tight.standard_errors.max() <= 0.05 * np.ptp(tight.values)
    unconverged = shapley_values(sample, max_permutations=9, precision=0.0)
    assert (unconverged.permutations, unconverged.converged) == (8, False)


def test_the_batch_size_changes_nothing(sample: GatedRows) -> None:
    batch_of_4 = shapley_values(sample, max_permutations=4)
    batch_of_1 = shapley_values(replace(sample, batch_size=1), max_permutations=4)
    assert_equal_up_to_rounding(batch_of_1.contributions, batch_of_4.contributions)
    other_seed = shapley_values(sample, max_permutations=4, seed=1)
    assert np.abs(other_seed.contributions - batch_of_4.contributions).max() > 1e-2


def test_each_row_has_its_own_orders() -> None:
    orders = shapley._orders(2400, 4, seed=0, round_number=0)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    times = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(times) == 24
    assert 60 < times.min() <= times.max() < 140  # 100 each on average, standard deviation 10
    assert not np.array_equal(orders, shapley._orders(2400, 4, seed=0, round_number=1))


def test_the_standard_error_equals_the_spread_over_seeds(sample: GatedRows) -> None:
    result = [shapley_values(sample, max_permutations=8, precision=0.0, seed=seed) for seed in range(16)]
    spread = np.std([estimate.values for estimate in result], axis=0, ddof=1)
    estimated = np.sqrt(np.mean([estimate.standard_errors**2 for estimate in result], axis=0))  # type: ignore[operator]
    ratio = np.sqrt((estimated**2).mean() / (spread**2).mean())
    assert 0.6 < ratio < 1.6  # measured 1.4 with these 16 seeds, 1.1 with 120


def test_one_row_and_one_round_have_no_spread(sample: GatedRows) -> None:
    result = shapley_values(sample.subset(sample.rows[:1]), max_permutations=3)
    assert (result.permutations, result.standard_errors, result.row_standard_errors) == (2, None, None)
    spread = shapley_values(sample, max_permutations=4)
    assert spread.row_standard_errors is not None
    expected = spread.contributions.std(0, ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(spread.row_standard_errors, expected)


def test_the_model_is_not_changed(sample: GatedRows) -> None:
    base = sample.classifier.base
    base.train()
    shapley_values(sample, max_permutations=2)
    assert base.training
    assert sum(len(module._forward_pre_hooks) for module in base.modules()) == 0


def test_fewer_than_two_permutations_are_rejected(sample: GatedRows) -> None:
    with pytest.raises(ModelError, match=r"max_permutations is 1; .*at least 2"):
        shapley_values(sample, max_permutations=1)
