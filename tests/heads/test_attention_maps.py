from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.errors import ModelError
from finetune.heads.attention_maps import confidence, eager_attention, entropy
from finetune.heads.gated_forward import GatedRows
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_pruning import prune_heads
from tests.models.test_head_gates import BUILDERS, bert
from tests.support.families import build, save_checkpoint, split_of
from tests.support.helpers import assert_equal_up_to_rounding, sample_of


def maps_by_hand(sample: GatedRows, row: int) -> list[np.ndarray]:
    """Return the attention weights (H, S, S) of each layer for one row without padding, computed in numpy."""
    base, maps = sample.classifier.base.eval(), []
    ids = torch.tensor([sample.split.rows["input_ids"][row]])
    for site in attention_sites(base):
        projected: dict[str, np.ndarray] = {}

        def keep(role: str, into: dict[str, np.ndarray]) -> Callable[[Any, Any, torch.Tensor], None]:
            def hook(module: Any, args: Any, result: torch.Tensor) -> None:
                into[role] = result[0].detach().double().numpy()

            return hook

        handles = [
            base.get_submodule(getattr(site, role)).register_forward_hook(keep(role, projected))
            for role in ("query", "key")
        ]
        with torch.no_grad():
            base(input_ids=ids)
        for handle in handles:
            handle.remove()
        width = projected["query"].shape[1] // site.num_heads
        weights = []
        for head in range(site.num_heads):
            columns = slice(head * width, (head + 1) * width)
            scores = projected["query"][:, columns] @ projected["key"][:, columns].T / np.sqrt(width)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            weights.append(scores / scores.sum(1, keepdims=True))
        maps.append(np.stack(weights))
    return maps


@pytest.mark.parametrize("make", BUILDERS, ids=lambda make: make.__name__)
def test_attention_weights_equal_a_numpy_computation_for_any_padding(
    make: Callable[[Path], Classifier], tiny_bert: Path
) -> None:
    classifier = make(tiny_bert)
    if (
        classifier.base.config.model_type == "multi_head_classifier"
    ):  # its default weights are too small: all heads would have nearly the same attention
        torch.nn.init.normal_(classifier.base.embedding.weight)
    sample = sample_of(classifier)  # six rows of 3 to 13 tokens in one batch
    assert len(set(sample.split.lengths)) > 3
    largest, negative_entropy = np.zeros((6, 2, 3)), np.zeros((6, 2, 3))
    for row in range(6):
        for layer, weights in enumerate(maps_by_hand(sample, row)):
            largest[row, layer] = weights.max(-1).mean(-1)
            negative_entropy[row, layer] = (weights * np.log(weights)).sum(-1).mean(-1)
    for measure, expected in ((confidence, largest), (entropy, negative_entropy)):
        result = measure(sample)
        assert_equal_up_to_rounding(result.contributions, expected)
        assert_equal_up_to_rounding(result.values, expected.mean(0))
        assert_equal_up_to_rounding(result.errors, expected.std(0, ddof=1) / np.sqrt(6))
        assert np.ptp(expected.mean(0)) > 0.01


def test_missing_heads_of_a_layer_have_nan(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    for heads, missing in (({0: [0]}, [False, False, True]), ({0: [0, 1]}, [True] * 3)):
        prune_heads(classifier.base, heads)
        result = confidence(sample_of(classifier))
        assert np.isnan(result.values).tolist() == [missing, [False] * 3]


def test_the_attention_implementation_is_restored_even_after_an_error(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_of(bert(tiny_bert))
    base, config = sample.classifier.base, sample.classifier.base.config
    assert config._attn_implementation == "sdpa"
    with eager_attention(sample.classifier):
        assert config._attn_implementation == "eager"
    assert config._attn_implementation == "sdpa"
    entropy(sample)
    assert config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), eager_attention(sample.classifier):
        raise ZeroDivisionError
    assert config._attn_implementation == "sdpa"
    assert all(m.config._attn_implementation == "sdpa" for m in base.modules() if hasattr(m, "config"))
    base.set_attn_implementation("eager")
    confidence(sample)
    assert config._attn_implementation == "eager"
    original = base.forward
    monkeypatch.setattr(base, "forward", lambda **kwargs: original(**kwargs | {"output_attentions": False}))
    with pytest.raises(ModelError, match=r"a 'bert' model returns no attention weights"):
        confidence(sample)


def test_a_model_that_returns_raw_scores_is_rejected_by_name(tmp_path: Path) -> None:
    classifier = build(save_checkpoint("squeezebert", tmp_path), None)
    with pytest.raises(
        ModelError, match=r"a 'squeezebert' model returns no attention weights .* choose another method"
    ):
        confidence(sample_of(classifier, split=split_of(classifier)))
