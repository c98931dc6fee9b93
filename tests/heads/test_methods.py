"""Every head method by its name, on classifiers whose important heads are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from finetune.errors import ModelError
from finetune.heads import methods
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.heads.learned import learned_gates
from finetune.heads.methods import METHODS, Budget, measure_importance
from finetune.models.head_pruning import prune_heads
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.recipe.names import HEAD_METHOD_NAMES, HEAD_METHODS, ITERATIVE
from tests.conftest import SENTENCES
from tests.models.test_head_gates import bert
from tests.support.families import build, save_checkpoint
from tests.support.helpers import assert_equal_up_to_rounding, encoded, sample_of
from tests.support.known_head import THE_HEAD, known_head

NAMES = HEAD_METHOD_NAMES
BLIND = {"confidence", "entropy", "random"}  # these ignore the effect of a head on the prediction
MEANS = {"gradient", "fisher", "integrated_gradients", "ablation_loss", "ablation_kl", "ablation_accuracy", "shapley"}
HEADS = [(layer, head) for layer in range(2) for head in range(3)]


@pytest.fixture(scope="module")
def known() -> GatedRows:
    return known_head(48)


def with_a_zero_head(tiny_bert: Path) -> GatedRows:
    """Return six rows with a BERT whose head 1.1 outputs zeros."""
    classifier = bert(tiny_bert)
    value = classifier.base.bert.encoder.layer[1].attention.self.value
    with torch.no_grad():
        value.weight[8:16], value.bias[8:16] = 0, 0
    return sample_of(classifier)


def with_unequal_layers(tiny_bert: Path) -> GatedRows:
    """Return six rows with a BERT whose first layer has only two heads."""
    classifier = bert(tiny_bert)
    prune_heads(classifier.base, {0: [1]})
    return sample_of(classifier)


def hooks(sample: GatedRows) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in sample.classifier.base.modules())


def test_every_name_has_a_function_and_the_recipe_accepts_it() -> None:
    assert list(METHODS) == list(HEAD_METHODS)
    iterative = [name for name in NAMES if name.startswith(ITERATIVE)]
    assert {name.removeprefix(ITERATIVE) for name in iterative} <= set(METHODS) - BLIND
    assert len(METHODS) >= 13
    assert len(iterative) >= 8
    assert len(NAMES) == len(METHODS) + len(iterative)
    assert HeadImportanceSection(method=list(NAMES)).methods() == list(NAMES)
    with pytest.raises(ValidationError, match=r"'gradient', 'gradient_layer_norm'.*'iterative_shapley'"):
        HeadImportanceSection(method="iterative_random")


def test_the_known_classifier_needs_only_its_known_head(known: GatedRows) -> None:
    def accuracy(*without: int) -> float:
        gates = known.gates()
        gates[0, list(without)] = 0
        return float((gated_logits(known, gates).argmax(-1).numpy() == known.labels).mean())

    assert accuracy() == accuracy(0, 1, 3) == 1.0
    assert 0.3 < accuracy(THE_HEAD[1]) < 0.7  # chance: 0.5 with a standard deviation of 0.07


@pytest.mark.parametrize("method", [name for name in NAMES if name not in BLIND])
def test_each_method_finds_the_head_that_carries_the_label(known: GatedRows, method: str) -> None:
    before = {name: tensor.clone() for name, tensor in known.classifier.base.state_dict().items()}
    scores = measure_importance(known, method, steps=2, seed=0)
    assert (scores.method, scores.split, scores.rows) == (method, "validation", 48)
    assert scores.order[-1] == THE_HEAD
    assert sorted(scores.order) == [(0, head) for head in range(4)]
    highest = scores.sorted_by_value()[0]
    assert (highest.layer, highest.head) == THE_HEAD
    others = [cell.value for cell in scores.sorted_by_value()[1:]]
    assert highest.value > 2 * max(0.0, *others)
    assert highest.error is not None
    assert hooks(known) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in known.classifier.base.state_dict().items())


@pytest.mark.parametrize("method", sorted(MEANS | {"gradient_layer_norm"}))
def test_a_head_with_zero_values_scores_zero(tiny_bert: Path, method: str) -> None:
    scores = measure_importance(with_a_zero_head(tiny_bert), method, steps=2, seed=0)
    assert scores.values[1][1] == scores.standard_errors[1][1] == 0
    if method != "ablation_accuracy":  # on six rows most heads change no prediction
        assert sum(value == 0 for row in scores.values for value in row) == 1


@pytest.mark.parametrize("method", ["gates", "learned_order"])
def test_learned_scores_of_a_head_with_zero_values_are_low(tiny_bert: Path, method: str) -> None:
    scores = measure_importance(with_a_zero_head(tiny_bert), method, steps=1, seed=0)
    assert scores.values[1][1] <= np.median(scores.values)


@pytest.mark.parametrize("method", NAMES)
def test_layers_with_different_numbers_of_heads(tiny_bert: Path, method: str) -> None:
    sample = with_unequal_layers(tiny_bert)
    scores = measure_importance(sample, method, steps=1, seed=0)
    assert sorted(scores.order) == [cell for cell in HEADS if cell != (0, 2)]
    for table in (scores.values, scores.standard_errors):
        assert [len(row) for row in table] == [3, 3]
        assert table[0][2] is None
    assert sum(value is None for row in scores.values for value in row) == 1
    assert np.isfinite([value for row in scores.values for value in row if value is not None]).all()
    assert {layer for layer, _ in scores.order[-2:]} == {0, 1}  # one head stays in each layer


def test_missing_heads_do_not_make_a_ranking_more_stable(tiny_bert: Path) -> None:
    sample, missing_counts = with_unequal_layers(tiny_bert), []
    for method in ("gradient", "fisher", "integrated_gradients"):
        estimate = METHODS[method].measure(sample, Budget(1, 0))
        assert estimate.contributions is not None
        assert np.isnan(estimate.contributions[:, 0, 2]).all()
        missing_counts.append(int(np.isnan(estimate.contributions).sum()))
    assert missing_counts == [6, 6, 6]


@pytest.mark.parametrize("method", ["gradient", "gradient_layer_norm", "fisher", "ablation_kl", "ablation_loss"])
def test_blocks_of_rows_give_the_result_of_all_rows_at_once(known: GatedRows, method: str) -> None:
    sample = replace(known, batch_size=4)  # blocks of 16 rows
    all_rows = measure_importance(sample, method, steps=1, seed=0)
    in_blocks = measure_importance(sample, method, steps=1, seed=0, max_seconds=1e9)
    assert in_blocks.rows == all_rows.rows == 48
    assert_equal_up_to_rounding(in_blocks.values, all_rows.values)
    assert_equal_up_to_rounding(in_blocks.standard_errors, all_rows.standard_errors)


@pytest.mark.parametrize("method", ["gradient", "fisher", "iterative_gradient", "shapley"])
def test_at_least_one_block_of_rows_is_measured(known: GatedRows, method: str) -> None:
    sample = replace(known, batch_size=4)
    scores = measure_importance(sample, method, steps=1, seed=0, max_seconds=1e-9)
    assert scores.rows == 16
    assert scores.order[-1] == THE_HEAD


def test_the_note_says_that_it_belongs_to_the_last_block(known: GatedRows) -> None:
    sample = replace(known, batch_size=4)
    scores = measure_importance(sample, "integrated_gradients", steps=1, seed=0, max_seconds=1e9)
    assert scores.note.startswith("measured in 3 blocks of rows; note of the last block: the shares sum to")


def test_one_row_has_values_and_no_errors(known: GatedRows) -> None:
    for method in NAMES:
        scores = measure_importance(known.subset(known.rows[:1]), method, steps=1, seed=0)
        assert all(error is None for row in scores.standard_errors for error in row)
        assert np.isfinite(scores.values).all()
        assert scores.stability is None


def test_a_random_ranking_uses_no_rows_and_follows_the_seed(known: GatedRows) -> None:
    first, same, other = (measure_importance(known, "random", steps=1, seed=seed) for seed in (0, 0, 1))
    assert first.rows == 0
    assert first.values == same.values != other.values


def test_accuracy_of_regression_is_rejected(known: GatedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known.classifier.base.config, "problem_type", "regression")
    with pytest.raises(ModelError, match="ablation by accuracy needs classes"):
        methods.ablated(known, "accuracy")


@pytest.mark.parametrize("method", ["iterative_ablation_kl", "iterative_gradient"])
def test_layers_that_share_their_weights_are_scored_separately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    classifier = build(save_checkpoint("albert", tmp_path), None)
    # All rows have one length. With two lengths the savings are checked twice, which could hide a wrong call order.
    sample = sample_of(classifier, split=encoded(classifier, [SENTENCES[2]] * 3 + [SENTENCES[0]], [0, 1, 2, 3]))
    scores = measure_importance(sample, method, steps=1, seed=0)
    original = methods.ablation
    monkeypatch.setattr(methods, "ablation", lambda sample: original(sample, fast=False))
    slow = measure_importance(sample, method, steps=1, seed=0)
    assert scores.order == slow.order
    assert_equal_up_to_rounding(scores.values, slow.values)


@pytest.mark.parametrize("method", ["learned_order", "gates"])
def test_learned_methods_stop_in_time_and_use_all_rows(known: GatedRows, method: str) -> None:
    sample = replace(known, batch_size=4)
    scores = measure_importance(sample, method, steps=1, seed=0, max_seconds=1e-9)
    assert scores.rows == len(sample)  # rows are never skipped, only steps
    assert scores.errors_over == "4 folds"
    if method == "learned_order":
        assert scores.note == "initial scores from 48 rows; 4 folds, steps of 32 rows per fold: 1"
    else:  # exactly one step per fold
        assert_equal_up_to_rounding(np.array(scores.values, dtype=float), learned_gates(sample, 1).values)
