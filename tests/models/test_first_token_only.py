"""The last layer computes only the first token: logits and gradients of every family are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.models.architectures import FAMILIES
from finetune.models.pooling import set_pooling
from finetune.models.speedups import first_token_only
from tests.support.exported import prune_layers
from tests.support.families import random_model
from tests.support.helpers import tiny_classifier

# Families whose last layer computes all tokens, and why. A family that is not listed must take the shortcut.
ALL_TOKENS = {
    "albert": "shares its layers",
    "multi_head_classifier": "averages all tokens",
    "squeezebert": "has channels first",
    **dict.fromkeys(("eurobert", "flaubert", "nomic_bert", "xlm"), "has no module right after the residual sum"),
}


def outcome(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of three rows, one of them padded, and the gradient of every parameter."""
    ids = torch.randint(3, 30, (3, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "pruned"),
    [
        *((family, False) for family in sorted(FAMILIES)),
        *((family, True) for family in ("bert", "distilbert", "ibert", "modernbert")),  # the last layer has no heads
    ],
)
def test_logits_and_gradients_are_the_same(family: str, pruned: bool) -> None:
    model = random_model(family).eval().double()
    if pruned:
        prune_layers(model)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with first_token_only(model) as cut:
        assert cut == (family not in ALL_TOKENS)
        if cut:
            with first_token_only(model) as nested:  # scoring in the middle of training
                assert nested
            logits, gradients = outcome(model)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    if cut:
        full, expected = outcome(model)
        assert torch.allclose(logits, full, rtol=0, atol=1e-9)
        # float64, because float32 gives rounding errors up to 1e-5 (MobileBERT).
        largest = max(gradient.abs().max() for gradient in expected.values())
        assert gradients.keys() == expected.keys()
        assert max((gradients[name] - expected[name]).abs().max() for name in expected) < 1e-9 * largest


def test_a_head_that_averages_gets_all_tokens() -> None:
    with first_token_only(random_model("modernbert", classifier_pooling="mean")) as cut:
        assert not cut
    with first_token_only(random_model("modernbert", classifier_pooling="cls")) as cut:
        assert cut


def test_a_pooled_classifier_that_averages_is_not_tested(tiny_bert: Path) -> None:
    model, calls = tiny_classifier(tiny_bert).base, []
    model.register_forward_pre_hook(lambda *args: calls.append(args))
    model.base_model.register_forward_pre_hook(lambda *args: calls.append(args))
    for pooling, is_tested in (("mean", False), ("cls", True)):
        set_pooling(model.config, pooling)
        with first_token_only(model) as cut:
            assert cut == is_tested
        assert bool(calls) == is_tested


def test_the_training_mode_is_restored(tiny_bert: Path) -> None:
    model = tiny_classifier(tiny_bert).base
    for mode in (True, False):
        model.train(mode)
        with first_token_only(model):
            assert model.training is mode
        assert not any(p.grad is not None for p in model.parameters())


def test_the_last_layer_computes_one_token(tiny_bert: Path) -> None:
    model, sizes = tiny_classifier(tiny_bert).base, []
    for layer in model.base_model.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    with first_token_only(model):
        sizes.clear()
        model(input_ids=torch.ones(2, 5, dtype=torch.long))
    assert sizes == [5, 1]


def test_a_head_that_hides_other_tokens_is_not_proof_that_they_are_unused() -> None:
    for weight in (torch.zeros(3, 24), torch.tensor([1e-3, -1e-3, 0.0])[:, None].expand(3, 24)):
        model = random_model("modernbert", classifier_pooling="mean")
        with torch.no_grad():
            model.classifier.weight.copy_(weight)
        with first_token_only(model) as cut:
            assert not cut


def test_sparse_attention_stays_sparse() -> None:
    model = random_model("big_bird", attention_type="block_sparse")
    with first_token_only(model) as cut:
        assert not cut
    assert model.base_model.attention_type == "block_sparse"
