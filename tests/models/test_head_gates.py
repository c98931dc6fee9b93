from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from torch import Tensor, nn

from finetune.data.tokenization import word_tokenizer
from finetune.errors import ModelError
from finetune.models.attention_sites import attention_sites
from finetune.models.building import Labels, new_classifier
from finetune.models.classifier import Classifier
from finetune.models.head_gates import check_gates, head_gates
from finetune.models.lora import Lora
from tests.conftest import SENTENCES
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, encoded, tiny_classifier


def bert(checkpoint: Path) -> Classifier:
    return tiny_classifier(checkpoint)


def bert_lora(checkpoint: Path) -> Classifier:
    classifier = tiny_classifier(checkpoint, lora=Lora(2, 4, 0.0, ROLES))
    torch.manual_seed(3)
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name:  # LoRA starts at zero, where it has no effect
            nn.init.normal_(parameter)
    return classifier


def bert_dora(checkpoint: Path) -> Classifier:
    classifier = tiny_classifier(checkpoint, lora=Lora(2, 4, 0.0, ROLES, use_dora=True))
    torch.manual_seed(4)
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return classifier


def small(checkpoint: Path) -> Classifier:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(datasets.Dataset.from_dict({"sentence": SENTENCES}), 40)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3}
    return new_classifier(
        "multi_head_classifier",
        sizes,
        tokenizer,
        Labels(("a", "b"), "single_label_classification"),
        max_length=16,
    )


BUILDERS = [bert, bert_lora, small]


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    build: Callable[[Path], Classifier] = request.param
    result = build(tiny_bert)
    result.model.eval()
    return result


@pytest.fixture
def inputs(classifier: Classifier) -> dict[str, Tensor]:
    encoding: dict[str, Tensor] = classifier.tokenizer(SENTENCES, padding=True, return_tensors="pt").data
    return encoding


def zero_columns(projection: nn.Module, columns: slice) -> None:
    """Set these input columns of a linear layer, or of a LoRA layer around one, to zero."""
    with torch.no_grad():
        if hasattr(projection, "lora_A"):
            projection.base_layer.weight[:, columns] = 0
            projection.lora_A["default"].weight[:, columns] = 0
        else:
            projection.weight[:, columns] = 0


def test_gates_of_one_change_nothing(classifier: Classifier, inputs: dict[str, Tensor]) -> None:
    base = classifier.base
    ungated = base(**inputs).logits
    for shape in ((2, 3), (len(SENTENCES), 2, 3)):
        with head_gates(base, attention_sites(base), torch.ones(shape)):
            assert torch.equal(base(**inputs).logits, ungated)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("head", [0, 2])
def test_a_gate_of_zero_equals_zeroed_columns(
    classifier: Classifier, inputs: dict[str, Tensor], layer: int, head: int
) -> None:
    base, sites = classifier.base, attention_sites(classifier.base)
    ungated = base(**inputs).logits
    gates = torch.ones(2, 3)
    gates[layer, head] = 0
    with head_gates(base, sites, gates):
        gated = base(**inputs).logits
    projection = base.get_submodule(sites[layer].output)
    width = projection.in_features // sites[layer].num_heads
    zero_columns(projection, slice(head * width, (head + 1) * width))
    assert torch.equal(base(**inputs).logits, gated)
    assert not torch.allclose(ungated, gated, atol=1e-5)


def test_each_example_has_its_own_gates(classifier: Classifier, inputs: dict[str, Tensor]) -> None:
    base, sites = classifier.base, attention_sites(classifier.base)
    gates = torch.rand(len(SENTENCES), 2, 3)
    with head_gates(base, sites, gates):
        batched = base(**inputs).logits
    for row in range(len(SENTENCES)):
        with head_gates(base, sites, gates[row]):
            single = base(**{name: tensor[row : row + 1] for name, tensor in inputs.items()}).logits
        assert_equal_up_to_rounding(batched[row : row + 1], single)


def test_the_model_is_restored_even_after_an_error(classifier: Classifier, inputs: dict[str, Tensor]) -> None:
    base = classifier.base
    before = sum(len(module._forward_pre_hooks) for module in base.modules())
    ungated = base(**inputs).logits
    with pytest.raises(ZeroDivisionError), head_gates(base, attention_sites(base), torch.zeros(2, 3)):
        raise ZeroDivisionError
    assert sum(len(module._forward_pre_hooks) for module in base.modules()) == before
    assert torch.equal(base(**inputs).logits, ungated)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (6,), (1, 1, 2, 3)])
def test_a_wrong_shape_is_rejected(classifier: Classifier, shape: tuple[int, ...]) -> None:
    with (
        pytest.raises(ModelError, match=r"gates have shape .*must be \(B, 2, 3\) or \(2, 3\)"),
        head_gates(classifier.base, attention_sites(classifier.base), torch.ones(shape)),
    ):
        pass


def test_gates_follow_the_dtype_of_the_states(tiny_bert: Path) -> None:
    base = bert(tiny_bert).base.to(torch.bfloat16).eval()
    ids = torch.tensor([[2, 3, 4]])
    with head_gates(base, attention_sites(base), torch.ones(2, 3)):
        assert base(input_ids=ids).logits.dtype == torch.bfloat16


def test_a_site_that_is_not_called_is_an_error(tiny_bert: Path) -> None:
    base = bert(tiny_bert).base.eval()
    ids = torch.tensor([[2, 3, 4]])
    base.bert.encoder.layer[1].attention.output.forward = lambda hidden, inputs: inputs  # never calls `dense`
    with (
        pytest.raises(ModelError, match=r"were called \[1, 0\] times"),
        head_gates(base, attention_sites(base), torch.ones(2, 3)),
    ):
        base(input_ids=ids)


def test_the_check_before_use_detects_a_gate_that_changes_the_logits(tiny_bert: Path) -> None:
    classifier = bert(tiny_bert)
    base, sites = classifier.base.eval(), attention_sites(classifier.base)
    inputs = {"input_ids": encoded(classifier).rows.with_format("torch")["input_ids"][0][None]}
    check_gates(base, sites, inputs)
    base.train()  # dropout: two passes differ
    base.bert.embeddings.dropout.p = 0.5
    with pytest.raises(ModelError, match="gates of 1 changed the logits"):
        check_gates(base, sites, inputs)


@pytest.mark.parametrize("build", [bert, bert_lora, bert_dora])
def test_gates_have_the_same_effect_with_every_attention_and_compiled(
    tiny_bert: Path, build: Callable[[Path], Classifier]
) -> None:
    classifier = build(tiny_bert)
    base, sites = classifier.base.eval(), attention_sites(classifier.base)
    inputs = classifier.tokenizer(SENTENCES, padding=True, return_tensors="pt").data
    gates = torch.rand(len(SENTENCES), 2, 3)
    with head_gates(base, sites, gates):
        fused = base(**inputs).logits
    base.set_attn_implementation("eager")
    with head_gates(base, sites, gates):
        eager = base(**inputs).logits
    assert_equal_up_to_rounding(eager, fused)
    if build is bert_dora:
        return  # peft 0.21's DoRA does not compile without warnings, gates or not
    torch._dynamo.reset()
    compiled = torch.compile(base, backend="eager", fullgraph=True)
    with head_gates(base, sites, gates):
        assert_equal_up_to_rounding(compiled(**inputs).logits, eager)


def test_a_gate_of_zero_equals_zeroed_columns_with_dora(tiny_bert: Path) -> None:
    classifier = bert_dora(tiny_bert)
    base, sites = classifier.base.eval(), attention_sites(classifier.base)
    inputs = classifier.tokenizer(SENTENCES, padding=True, return_tensors="pt").data
    gates = torch.ones(2, 3)
    gates[1, 2] = 0
    with head_gates(base, sites, gates):
        gated = base(**inputs).logits
    ungated = base(**inputs).logits
    # DoRA divides by the norms of full rows, so the columns are zeroed in the merged weights, as a gate does.
    merged = classifier.model.merge_and_unload().eval()
    with torch.no_grad():
        merged.get_submodule(sites[1].output).weight[:, 16:] = 0
    assert_equal_up_to_rounding(gated, merged(**inputs).logits)  # merging rounds
    assert not torch.allclose(gated, ungated, atol=1e-3)


def test_a_model_that_was_compiled_before_or_does_not_run_is_rejected(tiny_bert: Path) -> None:
    base = bert(tiny_bert).base.eval()
    inputs = {"input_ids": torch.tensor([[2, 3, 4]])}
    torch._dynamo.reset()
    compiled = torch.compile(base, backend="eager")
    compiled(**inputs)
    with (
        pytest.raises(ModelError, match="compiled before the gates were set"),
        head_gates(base, attention_sites(base), torch.zeros(2, 3)),
    ):
        compiled(**inputs)
    with (
        pytest.raises(ModelError, match="the model did not run"),
        head_gates(base, attention_sites(base), torch.zeros(2, 3)),
    ):
        pass
