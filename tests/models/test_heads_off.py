"""Heads turned off for any forward pass: equal to zeroed columns of the output projection, and undone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.errors import ModelError
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from tests.conftest import SENTENCES
from tests.models.test_head_gates import bert, bert_lora, zero_columns
from tests.support.families import build, save_checkpoint
from tests.support.helpers import assert_equal_up_to_rounding

HEADS = [(0, 1), (1, 0), (1, 2)]


def modernbert(folder: Path) -> Classifier:
    """A family whose query, key and value are one fused projection."""
    return build(save_checkpoint("modernbert", folder))


def tokenized(classifier: Classifier, rows: int) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = classifier.tokenizer(SENTENCES[:rows], padding=True, return_tensors="pt").data
    return inputs


def logits(classifier: Classifier, rows: int) -> Tensor:
    torch.manual_seed(0)  # the same dropout masks in train mode
    result: Tensor = classifier.base(**tokenized(classifier, rows)).logits
    return result


def num_hooks(classifier: Classifier) -> int:
    return sum(len(module._forward_pre_hooks) for module in classifier.base.modules())


def zero_heads(classifier: Classifier) -> None:
    """Zero the columns of HEADS in the output projections."""
    for layer, head in HEADS:
        site = attention_sites(classifier.base)[layer]
        projection = classifier.base.get_submodule(site.output)
        width = projection.in_features // site.num_heads
        zero_columns(projection, slice(head * width, (head + 1) * width))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("family", ["bert", "bert_lora", "modernbert"])
def test_heads_off_equals_zeroed_columns(family: str, mode: str, tiny_bert: Path, tmp_path: Path) -> None:
    builders = {"bert": bert, "bert_lora": bert_lora}
    classifier = builders[family](tiny_bert) if family in builders else modernbert(tmp_path)
    classifier.model.train(mode == "train")
    before = num_hooks(classifier)
    expected_on = logits(classifier, 4)
    with classifier.heads_off(HEADS):
        off = [logits(classifier, rows) for rows in (1, 4)]  # several passes, of different batch sizes
    assert num_hooks(classifier) == before
    assert torch.equal(logits(classifier, 4), expected_on)
    zero_heads(classifier)
    for rows, actual in zip((1, 4), off, strict=True):
        assert_equal_up_to_rounding(actual, logits(classifier, rows))
    assert not torch.allclose(off[1], expected_on, atol=1e-3)


def test_only_weights_of_heads_that_are_on_get_gradients(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    with classifier.heads_off([(1, 2)]):
        logits(classifier, 4).sum().backward()
    values = [classifier.base.get_submodule(site.value) for site in attention_sites(classifier.base)]
    gradients = torch.stack([value.weight.grad.unflatten(0, (3, 8)).abs().amax((1, 2)) for value in values])  # (L, H)
    assert (gradients > 0).tolist() == [[True, True, True], [True, True, False]]


def test_no_heads_and_nested_blocks(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    classifier.model.eval()
    expected_on = logits(classifier, 4)
    with classifier.heads_off([]):
        assert torch.equal(logits(classifier, 4), expected_on)
    with classifier.heads_off(HEADS):
        expected = logits(classifier, 4)
    with classifier.heads_off(HEADS[:1]), classifier.heads_off(HEADS[1:]):
        assert torch.equal(logits(classifier, 4), expected)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([(2, 0)], r"no layer 2; layers are 0 to 1"),
        ([(-1, 0)], r"no layer -1; layers are 0 to 1"),
        ([(0, 3)], r"layer 0 has no head 3; its heads are 0 to 2"),
        ([(1, -1)], r"layer 1 has no head -1; its heads are 0 to 2"),
        ([(0, 1), (1, 1), (0, 1)], r"head \(0, 1\) is given twice; give each head once"),
    ],
)
def test_heads_are_validated(tiny_bert: Path, heads: list[tuple[int, int]], message: str) -> None:
    classifier = bert(tiny_bert)
    before = num_hooks(classifier)
    with pytest.raises(ModelError, match=message), classifier.heads_off(heads):
        pass
    assert num_hooks(classifier) == before


def test_the_hooks_are_removed_after_an_error(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    before = num_hooks(classifier)
    with pytest.raises(ZeroDivisionError), classifier.heads_off(HEADS):
        raise ZeroDivisionError
    assert num_hooks(classifier) == before


def test_a_block_in_which_the_gates_had_no_effect_is_an_error(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    with pytest.raises(ModelError, match="the model did not run"), classifier.heads_off(HEADS):
        pass
    torch._dynamo.reset()
    compiled = torch.compile(classifier.base.eval(), backend="eager")
    inputs = tokenized(classifier, 2)
    compiled(**inputs)
    with pytest.raises(ModelError, match="compiled before the gates were set"), classifier.heads_off(HEADS):
        compiled(**inputs)


def test_a_failed_forward_pass_does_not_shift_the_gates_of_shared_layers(tmp_path: Path) -> None:
    classifier = build(save_checkpoint("albert", tmp_path))
    classifier.model.eval()
    heads, calls = [(0, 1), (3, 2)], []  # layers 0 and 1 share their weights, and so do 2 and 3

    def fail_once(module: torch.nn.Module, args: object) -> None:
        calls.append(module)
        if len(calls) == 1:
            raise ZeroDivisionError

    with classifier.heads_off(heads):
        expected = logits(classifier, 4)
    site = attention_sites(classifier.base)[0]
    handle = classifier.base.get_submodule(site.output).register_forward_pre_hook(fail_once)
    with classifier.heads_off(heads):
        first = attention_sites(classifier.base)[0].output
        gates = classifier.base.get_submodule(first)._forward_pre_hooks
        gates.move_to_end(handle.id)  # fail after the gates of the first layer were applied
        with pytest.raises(ZeroDivisionError):
            logits(classifier, 4)
        assert torch.equal(logits(classifier, 4), expected)
    handle.remove()
