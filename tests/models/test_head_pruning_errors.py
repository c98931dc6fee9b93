"""What pruning changes in a BERT model, and which heads cannot be pruned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES
from finetune.models.classifier import Classifier
from finetune.models.head_pruning import prune_heads
from finetune.models.lora import Lora
from finetune.models.pruned_model import classifier_class, unpruned_copy
from tests.support.families import build, save_checkpoint
from tests.support.gated_heads import PRUNED
from tests.support.helpers import ROLES


@pytest.fixture
def bert(tmp_path: Path) -> Classifier:
    built = build(save_checkpoint("bert", tmp_path / "bert"))
    return replace(built, model=built.model.eval())


def parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.base.parameters())


def test_the_number_of_removed_parameters_is_that_computed_by_hand(bert: Classifier) -> None:
    hidden, width = 24, 8
    head = (
        3 * (width * hidden + width) + hidden * width
    )  # query, key and value with biases; output without its bias, which is kept
    before = parameters(bert)
    prune_heads(bert.base, PRUNED)
    assert before - parameters(bert) == 3 * head == 2376
    attention = bert.base.bert.encoder.layer[1].attention
    assert (attention.self.num_attention_heads, attention.self.all_head_size) == (1, 8)
    assert (attention.self.query.out_features, attention.output.dense.in_features) == (8, 8)
    assert bert.base.config.num_attention_heads == 3


def test_frozen_parameters_stay_frozen(bert: Classifier) -> None:
    bert.base.bert.encoder.layer[1].requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in bert.base.named_parameters()}
    prune_heads(bert.base, PRUNED)
    assert {name: parameter.requires_grad for name, parameter in bert.base.named_parameters()} == before
    assert len(set(before.values())) == 2
    assert all(p.is_contiguous() and p.is_leaf for p in bert.base.parameters())


def test_buffers_of_a_projection_are_pruned_with_its_rows(tmp_path: Path) -> None:
    base = build(save_checkpoint("ibert", tmp_path)).base
    prune_heads(base, PRUNED)
    query = base.ibert.encoder.layer[1].attention.self.query
    assert query.weight_integer.shape == query.weight.shape == (8, 24)
    assert query.fc_scaling_factor.shape == query.bias_integer.shape == query.bias.shape == (8,)
    dense = base.ibert.encoder.layer[1].attention.output.dense
    assert dense.weight_integer.shape == dense.weight.shape == (24, 8)
    assert dense.fc_scaling_factor.shape == dense.bias_integer.shape == dense.bias.shape == (24,)


def test_pruning_no_heads_changes_nothing(bert: Classifier) -> None:
    before = bert.base.state_dict()
    prune_heads(bert.base, {0: [], 1: ()})
    assert not hasattr(bert.base.config, "pruned_heads")
    assert all(tensor.equal(before[name]) for name, tensor in bert.base.state_dict().items())
    assert classifier_class(bert.base.config) is AutoModelForSequenceClassification


@pytest.mark.parametrize("family", sorted(family for family in FAMILIES if FAMILIES[family].not_prunable))
def test_families_that_cannot_be_pruned_are_rejected(family: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"heads of a '{family}' model can be masked, but not pruned: .*convolution"):
        prune_heads(build(save_checkpoint(family, tmp_path)).base, {0: [1]})


def test_talking_heads_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a 'deberta' model can be masked, but not pruned: talking_head mixes"):
        prune_heads(build(save_checkpoint("deberta", tmp_path, talking_head=True)).base, {0: [1]})


def test_sparse_attention_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'big_bird' .*'block_sparse' .*; write \"attention_type\": \"original_full\""
    ):
        prune_heads(build(save_checkpoint("big_bird", tmp_path, attention_type="block_sparse")).base, {0: [1]})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({1: [3]}, "layer 1 has no head 3; its heads are 0 to 2"),
        ({1: [-1]}, "layer 1 has no head -1"),
        ({2: [0]}, "there is no layer 2; layers are 0 to 1"),
    ],
)
def test_heads_that_cannot_be_pruned_are_rejected(bert: Classifier, heads: dict[int, list[int]], message: str) -> None:
    before = bert.base.state_dict()
    with pytest.raises(ModelError, match=message):
        prune_heads(bert.base, {0: [1], **heads})
    assert all(tensor.equal(before[name]) for name, tensor in bert.base.state_dict().items())


def test_an_empty_layer_has_no_head_to_prune(bert: Classifier) -> None:
    prune_heads(bert.base, {1: [0, 1, 2]})
    with pytest.raises(ModelError, match="layer 1 has no head 0; all its heads were removed"):
        prune_heads(bert.base, {1: [0]})


def test_layers_that_share_weights_must_lose_the_same_heads(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layers 0 and 1 share their weights, but would lose heads \[1\] and \[\]"):
        prune_heads(build(save_checkpoint("albert", tmp_path)).base, {0: [1]})


def test_query_heads_that_share_a_key_must_be_pruned_together(tmp_path: Path) -> None:
    base = build(save_checkpoint("eurobert", tmp_path, num_attention_heads=6, num_key_value_heads=3, head_dim=4)).base
    with pytest.raises(ModelError, match="heads 2, 3 of layer 1 share a key and a value, but only 3 would be pruned"):
        prune_heads(base, {1: [3]})


def test_adapters_must_be_merged_first(tmp_path: Path) -> None:
    base = build(save_checkpoint("bert", tmp_path), Lora(2, 4, 0.0, ROLES)).base
    for operation in (lambda: prune_heads(base, {0: [1]}), lambda: unpruned_copy(base)):
        with pytest.raises(ModelError, match="a model with adapters cannot be pruned; merge the adapters first"):
            operation()


def test_a_family_outside_transformers_is_rejected(bert: Classifier) -> None:
    class UnknownConfig(type(bert.base.config)):  # type: ignore[misc]
        model_type = "bert"

    with pytest.raises(ModelError, match="lists pruned parts, which is supported only for classifiers in transformers"):
        classifier_class(UnknownConfig(pruned_heads={"0": [1]}))
