"""Layers that compute only real tokens: logits and gradients are those of padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.batching import load_batches
from finetune.models import compilation, packing
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.compilation import compiled_layers
from finetune.models.gradient_checkpointing import checkpointed_layers
from finetune.models.head_gates import head_gates
from finetune.models.lora import Lora
from finetune.models.packing import current_packing
from finetune.models.padding_free import Form, PaddingFree
from finetune.models.padding_free_trial import try_padding_free
from finetune.models.speedups import first_token_only, training_kernels
from tests.support.families import random_model
from tests.support.helpers import ROLES, in_float64, tiny_classifier
from tests.support.windows import windowed

CPU = torch.device("cpu")
LENGTHS = (3, 6, 1, 6)
# Families whose attention modules compute with padded states, because they use no attention function of transformers.
PADDED_ATTENTION = ("big_bird", "deberta", "deberta-v2", "megatron-bert", "mpnet", "rembert", "roformer")
# Families whose last layer adds the first token to all tokens, where the head reads only the first.
KEEP_ALL = ("mobilebert", "modernbert")
REFUSED = {
    "convbert": "logits or gradients differ",  # a convolution
    "flaubert": "take no attention_mask",
    "ibert": "cannot compute packed rows",  # pairs of states and their scale
    "multi_head_classifier": "no encoder of its own",
    "nystromformer": "logits or gradients differ",  # a convolution
    "squeezebert": "cannot compute packed rows",  # channels first
    "xlm": "take no attention_mask",
    "xmod": "cannot compute packed rows",  # adapters chosen per row
}


def batch_of(lengths: Sequence[int] = LENGTHS, *, left: bool = False) -> dict[str, Tensor]:
    longest, sizes = max(lengths), torch.tensor(lengths)[:, None]
    positions = torch.arange(longest)
    mask = (positions >= longest - sizes if left else positions < sizes).long()
    ids = torch.randint(3, 15, mask.shape, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids * mask, "attention_mask": mask}


def outcome(
    model: nn.Module, inputs: dict[str, Tensor], context: AbstractContextManager[Any] | None = None
) -> dict[str, Tensor]:
    """Return the logits, and the gradient of every trained parameter."""
    model.zero_grad()
    with context or nullcontext():
        logits = model(**inputs).logits
    logits.square().sum().backward()
    return {"logits": logits.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that logits and gradients differ by at most 1e-10 of the largest: measured up to 3e-15 in float64."""
    assert actual.keys() == expected.keys()
    assert torch.allclose(actual["logits"], expected["logits"], rtol=0, atol=1e-10 * expected["logits"].abs().max())
    largest = max(gradient.abs().max() for name, gradient in expected.items() if name != "logits")
    assert largest > 0
    assert max((actual[name] - expected[name]).abs().max() for name in expected if name != "logits") < 1e-10 * largest


def padding_free(model: PreTrainedModel, **options: Any) -> PaddingFree:
    result, reason = try_padding_free(model, CPU, **options)
    assert result is not None, reason
    return result


def state_of(model: nn.Module) -> list[Any]:
    """Return what a context could leave behind in the modules."""
    return [
        (len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in vars(m), m._compiled_call_impl, m.training)
        for m in model.modules()
    ]


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - REFUSED.keys()))
def test_logits_and_gradients_are_the_same(family: str) -> None:
    model = random_model(family).eval().double()
    before, implementation = state_of(model), model.config._attn_implementation
    packed = padding_free(model)
    with first_token_only(model) as first_only:
        assert packed.form == Form(family in PADDED_ATTENTION, first_only and family in KEEP_ALL)
        calls = packed.packed_calls
        for lengths in (LENGTHS, (4, 4), (5,), (1, 2)):
            inputs = batch_of(lengths)
            expected = outcome(model, inputs)
            for given in (None, torch.tensor(lengths)):
                assert_same(outcome(model, inputs, packed.in_use(given)), expected)
    layers = len(packed._order)
    assert packed.packed_calls - calls == 4 * layers  # two of the four batches have padding
    assert state_of(model) == before
    assert model.config._attn_implementation == implementation
    assert current_packing(model) is None


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_that_need_padded_batches_are_refused(family: str) -> None:
    model = random_model(family).train()
    before = state_of(model)
    result, reason = try_padding_free(model, CPU)
    assert result is None
    assert REFUSED[family] in reason
    assert state_of(model) == before


def test_other_attention_implementations(tiny_bert: Path) -> None:
    model = tiny_classifier(tiny_bert).base.double().eval()
    model.set_attn_implementation("eager")
    packed = padding_free(model)
    assert packed.form.padded_attention
    assert_same(outcome(model, batch_of(), packed.in_use()), outcome(model, batch_of()))
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in try_padding_free(model, CPU)[1]


def test_sparse_attention_is_not_tried() -> None:
    """BigBird would switch to full attention, permanently, on the short rows of the trial."""
    model = random_model("big_bird", attention_type="block_sparse", block_size=4, num_random_blocks=1)
    assert "block_sparse" in try_padding_free(model, CPU)[1]
    assert model.base_model.attention_type == "block_sparse"


def test_padding_before_the_tokens() -> None:
    model = random_model("eurobert").eval().double()  # its head reads the mean over tokens
    packed, inputs = padding_free(model, left=True), batch_of(left=True)
    for lengths in (None, torch.tensor(LENGTHS)):
        assert_same(outcome(model, inputs, packed.in_use(lengths)), outcome(model, inputs))
    assert packed.packed_calls > 4
    assert "differ" in try_padding_free(random_model("bert"), CPU, left=True)[1]  # its head reads the first position


def test_the_trial_finds_layers_that_mix_tokens(tiny_bert: Path) -> None:
    model = tiny_classifier(tiny_bert).base

    def add_neighbor(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + output.roll(1, dims=1)

    model.bert.encoder.layer[0].output.register_forward_hook(add_neighbor)
    assert "differ" in try_padding_free(model, CPU)[1]


@pytest.fixture
def adapted(tiny_bert: Path) -> Classifier:
    classifier = in_float64(tiny_classifier(tiny_bert, lora=Lora(2, 4, 0.0, ROLES)))
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    classifier.model.eval()
    return classifier


def test_with_adapters(adapted: Classifier) -> None:
    packed = padding_free(adapted.base)
    with first_token_only(adapted.base):
        expected = outcome(adapted.model, batch_of())
        assert_same(outcome(adapted.model, batch_of(), packed.in_use()), expected)
    assert any("lora_A" in name for name in expected)


def test_with_layers_that_are_computed_again(tiny_bert: Path) -> None:
    classifier = in_float64(tiny_classifier(tiny_bert))
    model = classifier.base.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    packed = padding_free(model)
    with first_token_only(model):
        expected = outcome(model, batch_of())
        calls: list[Any] = []
        model.bert.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
        with checkpointed_layers(model, CPU, packed), training_kernels(CPU, compiled=False):
            assert_same(outcome(model, batch_of(), packed.in_use()), expected)
    assert len(calls) == 2
    assert model.config._attn_implementation == "sdpa"


def test_with_dropout_the_same_masks_are_drawn_again(tiny_bert: Path) -> None:
    model = in_float64(tiny_classifier(tiny_bert)).base.train()
    packed, results = padding_free(model), []
    for layers in (nullcontext(), checkpointed_layers(model, CPU, packed)):
        torch.manual_seed(5)
        with layers, training_kernels(CPU, compiled=False):
            results.append(outcome(model, batch_of(), packed.in_use()))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("first_token", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_with_head_gates(tiny_bert: Path, per_row: bool, first_token: bool) -> None:
    model = in_float64(tiny_classifier(tiny_bert)).base.eval()
    packed, sites = padding_free(model), attention_sites(model)
    gates = torch.rand(*([len(LENGTHS)] if per_row else []), 2, 3, dtype=torch.float64, requires_grad=True)
    results, gradients = [], []
    with first_token_only(model) if first_token else nullcontext():
        for context in (nullcontext(), packed.in_use()):
            with head_gates(model, sites, gates):
                results.append(outcome(model, batch_of(), context))
            assert gates.grad is not None
            gradients.append(gates.grad.clone())
            gates.grad = None
    assert_same(results[1], results[0])
    assert torch.allclose(gradients[1], gradients[0], rtol=0, atol=1e-10 * float(gradients[0].abs().max()))


def test_with_windows(tiny_bert: Path) -> None:
    classifier, split = windowed(tiny_bert)
    model = in_float64(classifier).model.eval()
    packed = padding_free(classifier.base)
    (batch,) = load_batches(split, [torch.arange(5).numpy()], classifier.tokenizer, device=CPU)
    assert len(batch.inputs["input_ids"]) > 5
    calls = packed.packed_calls
    assert_same(outcome(model, batch.inputs, packed.in_use()), outcome(model, batch.inputs))
    assert packed.packed_calls > calls


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2", "eurobert", "albert"])
def test_a_device_without_numbers_computes_packed_rows(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    # On the meta device torch checks operators and computes shapes. A read of a number is an error, as it would make
    # the CPU wait for a GPU, and the flash kernel and its gradient get the arguments that they get on a GPU.
    kernel, dtypes = packing.FLASH_KERNEL, []

    def flash_kernel(query: Tensor, *args: Any, **kwargs: Any) -> Any:
        dtypes.append(query.dtype)
        return kernel(query, *args, **kwargs)

    monkeypatch.setattr(packing, "FLASH_KERNEL", flash_kernel)
    model = random_model(family).train()  # with dropout
    packed = padding_free(model)
    if not packed.form.padded_attention:
        packed.form = replace(packed.form, flash=True)
    inputs = {name: tensor.to("meta") for name, tensor in batch_of().items()}
    gradients = outcome(model.to("meta").to(torch.bfloat16), inputs, packed.in_use(torch.tensor(LENGTHS)))
    assert gradients["logits"].shape == (len(LENGTHS), 3)
    assert len(gradients) > 10
    # ModernBERT attends within windows in its second layer; EuroBERT's heads share keys.
    flash_calls = {"bert": 2, "modernbert": 1, "deberta-v2": 0, "eurobert": 0, "albert": 4}
    assert dtypes == [torch.bfloat16] * flash_calls[family]


def test_compiled_layers_get_packed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(compilation, "BACKEND", backend)
    model, counts = random_model("bert", num_hidden_layers=1).eval().double(), []
    packed = padding_free(model)
    batches = [batch_of(), batch_of((2, 7, 4))]
    expected = [outcome(model, batch) for batch in batches]
    with compiled_layers(model, CPU):
        for batch, one in zip(batches, expected, strict=True):
            assert_same(outcome(model, batch, packed.in_use()), one)
            counts.append(len(graphs))
    assert 2 <= counts[0] == counts[1]  # other sizes need no further compilation
