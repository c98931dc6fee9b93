from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.batching import load_batches
from finetune.heads import learned
from finetune.heads.learned import HIGH, LOW, TEMPERATURE, hard_concrete, learned_gates
from finetune.models.head_gates import head_gates
from finetune.models.head_pruning import prune_heads
from tests.models.test_head_gates import bert
from tests.support.helpers import assert_equal_up_to_rounding, in_float64, sample_of
from tests.support.known_head import THE_HEAD, known_head


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_gates_are_0_and_1_at_the_rates_of_the_distribution(log_alpha: float) -> None:
    gates = hard_concrete(torch.tensor([[log_alpha]]), 200_000, torch.Generator().manual_seed(0))
    assert gates.shape == (200_000, 1, 1)
    assert 0 <= float(gates.min()) <= float(gates.max()) <= 1
    # Louizos et al. 2018, equations 11 and 12: the stretched gate is below 0 where the concrete variable, whose
    # distribution function is sigmoid(TEMPERATURE logit(s) - log_alpha), is below -LOW / (HIGH - LOW).
    closed_rate = sigmoid(TEMPERATURE * math.log(-LOW / HIGH) - log_alpha)
    open_rate = 1 - sigmoid(TEMPERATURE * math.log((1 - LOW) / (HIGH - 1)) - log_alpha)
    # A proportion of 200,000 samples has a standard deviation of at most .0011: measured up to .0012.
    assert float((gates == 0).double().mean()) == pytest.approx(closed_rate, abs=5e-3)
    assert float((gates == 1).double().mean()) == pytest.approx(open_rate, abs=5e-3)
    assert 0.02 < closed_rate + open_rate < 0.98


@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_autograd_through_the_full_model(tiny_bert: Path, seed: int) -> None:
    sample, price = sample_of(in_float64(bert(tiny_bert))), 0.02
    result = learned._train_gates(sample, price, seed, iter(range(3)))
    base, noise = sample.classifier.base.eval(), torch.Generator().manual_seed(seed)
    (batch,) = load_batches(sample.split, [sample.rows], sample.classifier.tokenizer, device=torch.device("cpu"))
    log_alpha = torch.full((2, 3), 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([log_alpha], lr=0.2)
    for _ in range(3):
        gates = hard_concrete(log_alpha, 6, noise)
        with head_gates(base, sample.sites, gates):
            logits = base(**batch.inputs).logits
        open_gates = (1 - torch.sigmoid(TEMPERATURE * math.log(-LOW / HIGH) - log_alpha)).sum()  # equation 12
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(logits, batch.labels) + price * open_gates).backward()
        optimizer.step()
    # Adam's steps are near 0.2 for any gradient, so a wrong sign or a missing term is detected. Gates are float32.
    assert_equal_up_to_rounding(result, log_alpha)
    assert np.ptp(result) > 0.1


def test_values_are_the_mean_over_folds_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, folds = known_head(18), []
    original = learned._train_gates

    def train(part: object, *rest: object) -> np.ndarray:
        folds.append((part, original(part, *rest), rest[1]))  # type: ignore[arg-type]
        return folds[-1][1]

    monkeypatch.setattr(learned, "_train_gates", train)
    result = learned_gates(sample, 5, seed=3)
    assert sorted(row for part, _, _ in folds for row in part.rows) == list(range(18))
    assert [len(part) for part, _, _ in folds] == [5, 5, 4, 4]
    assert len({seed for _, _, seed in folds}) == 4  # each fold has its own noise, so that the error includes it
    trained = np.stack([values for _, values, _ in folds])
    assert_equal_up_to_rounding(result.values, trained.mean(0) - learned.SHIFT)  # log-odds of an open gate
    assert_equal_up_to_rounding(result.errors, trained.std(0, ddof=1) / 2)
    assert result.note == "4 folds of 4 rows, at most 5 steps each, at a price of 0.02 per open gate"
    assert result.contributions is None


def test_a_higher_price_closes_gates_except_the_needed_one() -> None:
    sample = known_head(32)
    cheap, expensive = (learned_gates(sample, 20, price=price).values for price in (0.0, 0.05))
    other_heads = [head for head in range(4) if head != THE_HEAD[1]]
    assert (expensive[0, other_heads] < cheap[0, other_heads] - 1).all()
    assert expensive[THE_HEAD] > 2 > expensive[0, other_heads].max()


def test_one_row_has_no_error_and_a_missing_head_has_no_value(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    prune_heads(classifier.base, {0: [0, 1, 2]})
    sample = sample_of(classifier)
    result = learned_gates(sample.subset(sample.rows[:1]), 2)
    assert result.errors is None
    assert np.isnan(result.values).tolist() == [[True] * 3, [False] * 3]
