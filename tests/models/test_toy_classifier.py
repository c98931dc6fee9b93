from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune.models.toy_classifier import (
    MultiHeadAttention,
    MultiHeadClassifier,
    MultiHeadClassifierConfig,
    attention_scores,
    register,
)
from tests.support.helpers import assert_equal_up_to_rounding

# float64 differs from PyTorch's kernel only by rounding: measured 2e-16 to 4e-16.
CLOSE = {"atol": 1e-14, "rtol": 1e-12}


def torch_attention(ours: MultiHeadAttention, width: int) -> nn.MultiheadAttention:
    """Return PyTorch's attention with our weights; if H * D exceeds our width, the additional inputs are zeros."""
    inner, hidden = ours.query.weight.shape
    reference = nn.MultiheadAttention(inner, ours.num_heads, batch_first=True, dtype=torch.float64)
    assert reference.in_proj_bias is not None
    with torch.no_grad():
        reference.in_proj_weight.zero_()
        reference.out_proj.weight.zero_()
        reference.out_proj.bias.zero_()
        for index, projection in enumerate((ours.query, ours.key, ours.value)):
            rows = slice(index * inner, (index + 1) * inner)
            reference.in_proj_weight[rows, :hidden] = projection.weight
            reference.in_proj_bias[rows] = projection.bias
        reference.out_proj.weight[:hidden] = ours.output.weight
        reference.out_proj.bias[:hidden] = ours.output.bias
    assert width == hidden
    return reference.eval()


@pytest.mark.parametrize(("hidden", "heads", "head_dim"), [(32, 2, 16), (32, 4, 8), (16, 2, 16), (16, 1, 32)])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_that_of_torch_with_the_same_weights(
    hidden: int, heads: int, head_dim: int, padded: bool
) -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(hidden, heads, head_dim).double()
    states = torch.randn(3, 7, hidden, dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6]) if padded else None
    padded_states = nn.functional.pad(states, (0, heads * head_dim - hidden))
    expected, weights = torch_attention(ours, hidden)(
        padded_states,
        padded_states,
        padded_states,
        key_padding_mask=None if mask is None else mask == 0,
        average_attn_weights=False,
    )
    result, scores = ours(states, mask)
    torch.testing.assert_close(result, expected[..., :hidden], **CLOSE)
    torch.testing.assert_close(scores, weights, **CLOSE)


def test_scores_are_scaled_and_masked() -> None:
    query = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]]]])
    key = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [5.0, 0, 0, 0]]]])
    scores = attention_scores(query, key, torch.tensor([[1, 1, 0]]))
    # 2 * 1 / sqrt(4) = 1 against 0, the third token is padding
    first = math.e / (math.e + 1)
    torch.testing.assert_close(scores, torch.tensor([[[[first, 1 - first, 0.0]]]]))


@pytest.fixture
def small() -> MultiHeadClassifier:
    torch.manual_seed(0)
    return MultiHeadClassifier(MultiHeadClassifierConfig(num_labels=2, num_hidden_layers=2)).eval()


def test_sizes_are_those_of_the_article() -> None:
    model = MultiHeadClassifier(MultiHeadClassifierConfig(num_labels=2))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "embedding.weight": (100, 16),
        "layers.0.attention.query.weight": (32, 16),
        "layers.0.attention.key.weight": (32, 16),
        "layers.0.attention.value.weight": (32, 16),
        "layers.0.attention.output.weight": (16, 32),
        "dense.weight": (24, 16),
        "classifier.weight": (1, 24),
    }


def test_padding_changes_nothing(small: MultiHeadClassifier) -> None:
    ids = torch.tensor([[5, 6, 7]])
    unpadded = small(ids).logits
    padded = small(torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]])).logits[:1]
    assert_equal_up_to_rounding(padded, unpadded)  # sums in another order


def test_two_logits_equal_one_sigmoid(small: MultiHeadClassifier) -> None:
    logits = small(torch.tensor([[5, 6, 7], [8, 9, 3]])).logits
    assert logits[:, 0].eq(0).all()
    torch.testing.assert_close(logits.softmax(-1)[:, 1], logits[:, 1].sigmoid())
    labels = torch.tensor([1, 0])
    binary = nn.functional.binary_cross_entropy_with_logits(logits[:, 1], labels.float())
    torch.testing.assert_close(nn.functional.cross_entropy(logits, labels), binary)


@pytest.mark.parametrize(
    ("num_labels", "problem_type"),
    [(1, "regression"), (3, "single_label_classification"), (2, "multi_label_classification")],
)
def test_other_tasks_have_one_output_unit_per_label(num_labels: int, problem_type: str) -> None:
    config = MultiHeadClassifierConfig(num_labels=num_labels, problem_type=problem_type)
    logits: Tensor = MultiHeadClassifier(config)(torch.tensor([[5, 6]])).logits
    assert logits.shape == (1, num_labels)
    assert not logits[:, 0].eq(0).all()


def test_auto_classes_load_the_model(small: MultiHeadClassifier, tmp_path: Path) -> None:
    register()
    register()  # may be repeated
    small.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MultiHeadClassifierConfig)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert all(torch.equal(value, reloaded.state_dict()[name]) for name, value in small.state_dict().items())
    assert_equal_up_to_rounding(reloaded(ids).logits, small(ids).logits)  # other memory addresses
    assert len(reloaded(ids, output_attentions=True).attentions) == 2
