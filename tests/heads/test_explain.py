from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.data.tokenization import word_tokenizer
from finetune.heads import explain
from finetune.heads.ablation import SHARED_ATTENTION, fitting_savings
from finetune.heads.fast_ablation import prefix_reuse
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_gates
from finetune.models.head_pruning import prune_heads
from tests.conftest import SENTENCES
from tests.models.test_head_gates import BUILDERS, bert_lora
from tests.support.families import random_model
from tests.support.helpers import FLOAT64, assert_equal_up_to_rounding, in_float64
from tests.support.known_head import THE_HEAD, known_head

TARGETS = torch.tensor([0, 1] * 3)
NO_MAPS = {"squeezebert"}


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    built: Classifier = request.param(tiny_bert)
    return built


@torch.no_grad()
def scores(classifier: Classifier, inputs: explain.Inputs, targets: Tensor) -> np.ndarray:
    logits = classifier.base.eval()(**inputs).logits
    return np.asarray(explain.target_scores(logits, targets, classifier.problem_type))


def effects_one_by_one(classifier: Classifier, inputs: explain.Inputs, targets: Tensor) -> np.ndarray:
    """Return the effect of each head from one forward pass per head with `heads_off`, (B, L, H)."""
    sites = attention_sites(classifier.base)
    result = np.full((len(targets), len(sites), max(site.num_heads for site in sites)), np.nan)
    for site in sites:
        for head in range(site.num_heads):
            with classifier.heads_off([(site.layer, head)]):
                result[:, site.layer, head] = -scores(classifier, inputs, targets)
    return result + scores(classifier, inputs, targets)[:, None, None]


def test_head_effects_equal_turning_heads_off_one_by_one(classifier: Classifier) -> None:
    inputs = explain.tokenized(classifier, [SENTENCES])
    expected = effects_one_by_one(classifier, inputs, TARGETS)
    assert np.abs(expected).max() > 1e-3
    assert_equal_up_to_rounding(explain.head_effects(classifier, inputs, TARGETS), expected)
    base, sites = classifier.base.eval(), attention_sites(classifier.base)
    assert SHARED_ATTENTION in fitting_savings(base, sites, inputs)
    reuse = prefix_reuse(base, sites, shared_attention=True)
    assert_equal_up_to_rounding(explain.head_effects(classifier, inputs, TARGETS, reuse=reuse), expected)


@pytest.mark.parametrize("removed", [[0, 2], [0, 1, 2]])
def test_pruned_heads_have_no_effect_and_no_attention(tiny_bert: Path, removed: list[int]) -> None:
    classifier = BUILDERS[0](tiny_bert)
    prune_heads(classifier.base, {1: removed})
    inputs = explain.tokenized(classifier, [SENTENCES])
    targets = explain.predicted_targets(classifier.base.eval()(**inputs).logits)
    exact, first_order = explain.head_effects(classifier, inputs), explain.first_order_head_effects(classifier, inputs)
    assert_equal_up_to_rounding(exact, effects_one_by_one(classifier, inputs, targets))
    for effects in (exact, first_order):
        assert np.isnan(effects).any(0).tolist() == [[False] * 3, [len(removed) == 3, True, True]]
    remaining = {(0, 0), (0, 1), (0, 2), (1, 0)} - {(1, head) for head in removed if len(removed) == 3}
    assert explain.attention_of(classifier, inputs)[0].keys() == remaining
    assert explain.attention_of(classifier, inputs, [(1, 2)])[0] == {}


def test_first_order_effects_equal_finite_differences(classifier: Classifier) -> None:
    in_float64(classifier)
    inputs, sites = explain.tokenized(classifier, [SENTENCES]), attention_sites(classifier.base)
    step, expected = 1e-4, np.zeros((6, 2, 3))

    def scores_with(gate: float, layer: int, head: int) -> np.ndarray:
        gates = torch.ones(2, 3, dtype=torch.float64)
        gates[layer, head] = gate
        with torch.no_grad(), head_gates(classifier.base.eval(), sites, gates):
            logits = classifier.base(**inputs).logits  # `target_scores` would round to float32
        others = logits.scatter(-1, TARGETS[:, None], -torch.inf).logsumexp(-1)
        return np.asarray(logits.gather(-1, TARGETS[:, None])[:, 0] - others)

    for layer in range(2):
        for head in range(3):
            difference = scores_with(1 + step, layer, head) - scores_with(1 - step, layer, head)
            expected[:, layer, head] = difference / (2 * step)
    # Expected: the third derivative times the step squared, and the rounding of the scores to float32.
    assert_equal_up_to_rounding(explain.first_order_head_effects(classifier, inputs, TARGETS), expected, FLOAT64)


def test_the_batch_changes_only_rounding(tiny_bert: Path) -> None:
    classifier = bert_lora(tiny_bert)
    inputs = explain.tokenized(classifier, [SENTENCES])  # of 3 to 13 tokens: padded
    for function in (explain.head_effects, explain.first_order_head_effects):
        alone = [function(classifier, explain.tokenized(classifier, [[text]])) for text in SENTENCES]
        assert_equal_up_to_rounding(function(classifier, inputs), np.concatenate(alone))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in classifier.model.modules())
    maps = explain.attention_of(classifier, inputs, [(0, 2), (1, 0)])
    for text, by_head in zip(SENTENCES, maps, strict=True):
        (alone_by_head,) = explain.attention_of(classifier, explain.tokenized(classifier, [[text]]), list(by_head))
        assert by_head.keys() == {(0, 2), (1, 0)}
        for head, weights in by_head.items():
            assert weights.shape == (len(text.split()),) * 2
            assert_equal_up_to_rounding(weights, alone_by_head[head])
            assert_equal_up_to_rounding(weights.sum(1), np.ones(len(weights)))


def test_the_planted_head_is_found_in_every_row() -> None:
    sample = known_head()
    inputs = explain.tokenized(sample.classifier, [list(sample.split.texts["sentence"])])
    for effects in (
        explain.head_effects(sample.classifier, inputs),
        explain.first_order_head_effects(sample.classifier, inputs),
    ):
        flat = effects.reshape(len(effects), -1)
        assert (flat.argmax(1) == np.ravel_multi_index(THE_HEAD, effects.shape[1:])).all()
        assert (np.sort(flat, axis=1)[:, -2] < 0.2 * flat.max(1)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_explained(family: str) -> None:
    tokenizer = word_tokenizer(datasets.Dataset.from_dict({"sentence": SENTENCES}), 20)
    base = random_model(family)
    base.config.problem_type = "single_label_classification"
    classifier = Classifier(base, tokenizer, 16, None)
    inputs = explain.tokenized(classifier, [["the cat sat on", "a dog chased the"]])
    targets = torch.tensor([0, 2])
    effects = explain.head_effects(classifier, inputs, targets)
    last = attention_sites(base)[-1]
    with classifier.heads_off([(last.layer, last.num_heads - 1)]):
        off = scores(classifier, inputs, targets)
    full = scores(classifier, inputs, targets)
    # Effects are differences of scores, so their rounding is that of the scores.
    np.testing.assert_allclose(
        effects[:, last.layer, last.num_heads - 1], full - off, rtol=0, atol=1e-5 * max(1, float(np.abs(full).max()))
    )
    assert explain.first_order_head_effects(classifier, inputs, targets).shape == effects.shape
    for result, score in zip(explain.token_attributions(classifier, inputs, targets, steps=2), full, strict=True):
        assert result.score == pytest.approx(float(score), abs=1e-5)
        assert len(result.values) == 4
        assert all(np.isfinite(result.values))
        assert any(result.values)
    maps = explain.attention_of(classifier, inputs, [(0, 0)])
    assert [row.keys() for row in maps] == [set() if family in NO_MAPS else {(0, 0)}] * 2
