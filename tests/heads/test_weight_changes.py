"""What training changed in each head: the products of its weights, and its effect on predictions."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.product_change import effective_rank
from finetune.heads.weight_changes import head_changes, load_base, matched_heads, merged_copy, reset_head
from finetune.models.attention_sites import ROLES, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.lora import Lora
from finetune.models.losses import divergence
from finetune.runs.head_results import HeadChanges
from finetune.runs.json_files import read_json, write_json
from tests.conftest import SENTENCES
from tests.heads.test_product_change import dense_change
from tests.support.families import build, save_checkpoint, split_of, train_three_steps
from tests.support.helpers import sample_of, tiny_classifier

LORA = Lora(2, 8, 0.0, ROLES)
TRAINING_MODES: dict[str, Lora | None] = {"lora": LORA, "dora": replace(LORA, use_dora=True), "full": None}
CPU = torch.device("cpu")
TEXTS = [(text,) for text in SENTENCES]


def trained(classifier: Classifier, accelerator: Accelerator) -> Classifier:
    torch.manual_seed(0)
    train_three_steps(classifier, accelerator)
    return classifier


@pytest.fixture(params=TRAINING_MODES)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path, accelerator: Accelerator) -> Classifier:
    torch.manual_seed(0)
    untrained = tiny_classifier(tiny_bert, lora=TRAINING_MODES[request.param], labels=("a", "b", "c", "d"))
    return trained(untrained, accelerator)


def effective_weights(classifier: Classifier, path: str) -> np.ndarray:
    """Return the matrix (in, out) of a projection: its outputs for the unit vectors, without the bias."""
    module = classifier.base.get_submodule(path)
    width = module.in_features
    with torch.no_grad():
        zero = module(torch.zeros(1, width))
        return (module(torch.eye(width)) - zero).double().numpy()


def test_every_product_equals_the_dense_computation(classifier: Classifier) -> None:
    result, base = head_changes(sample_of(classifier, 2)), load_base(classifier)
    start = replace(classifier, model=base)
    count = 0
    for site in attention_sites(base):
        old, new = ({role: effective_weights(c, getattr(site, role)) for role in ROLES} for c in (start, classifier))
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            ov = [w["value"][:, part] @ w["output"][part] for w in (old, new)]
            qk = [w["query"][:, part] @ w["key"][:, part].T for w in (old, new)]
            for name, (before, after) in (("output_value", ov), ("query_key", qk)):
                relative, rank = dense_change(before, after)
                # Measured: 2e-6, the rounding of the projections' float32 outputs.
                assert getattr(result, name)[site.layer][head] == pytest.approx(relative, rel=1e-3)
                assert getattr(result, f"{name}_rank")[site.layer][head] == pytest.approx(rank, rel=1e-3)
                count += 1
    assert count == 12


def hand_edited(classifier: Classifier, layer: int, head: int) -> Classifier:
    """Return a merged copy of a BERT in which the rows and columns of one head are those of the base."""
    model, base = merged_copy(classifier), load_base(classifier)
    part = slice(8 * head, 8 * head + 8)
    edited, original = (m.bert.encoder.layer[layer].attention for m in (model, base))
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(edited.self, name).weight[part] = getattr(original.self, name).weight[part]
            getattr(edited.self, name).bias[part] = getattr(original.self, name).bias[part]
        edited.output.dense.weight[:, part] = original.output.dense.weight[:, part]
    return replace(classifier, model=model)


def test_effects_equal_those_of_a_hand_edited_copy(classifier: Classifier) -> None:
    before = {name: p.detach().clone() for name, p in classifier.model.named_parameters()}
    sample = sample_of(classifier)
    result = head_changes(sample)
    labels = torch.as_tensor(sample.labels)
    logits = logits_of(replace(classifier, model=merged_copy(classifier)), TEXTS, CPU)
    for layer in range(2):
        for head in range(3):
            other = logits_of(hand_edited(classifier, layer, head), TEXTS, CPU)
            kl = F.kl_div(other.log_softmax(-1), logits.log_softmax(-1), reduction="none", log_target=True).sum(-1)
            rise = F.cross_entropy(other, labels, reduction="none") - F.cross_entropy(logits, labels, reduction="none")
            cells = [
                getattr(result, name)[layer][head]
                for name in ("effect", "effect_errors", "loss_change", "loss_change_errors")
            ]
            expected = [f(x) for x in (kl, rise) for f in (torch.mean, lambda x: x.std() / len(x) ** 0.5)]
            # In float32; batches of other lengths are padded differently.
            assert cells == pytest.approx([float(x) for x in expected], abs=3e-5, rel=1e-3)
            assert abs(cells[0]) > 1e-4
    assert all(before[name].equal(p) for name, p in classifier.model.named_parameters())  # not changed
    assert result.effect_measure == "KL divergence (nats)"
    assert (result.split, result.rows) == ("validation", 6)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_an_untrained_model_has_no_changes(tiny_bert: Path, lora: Lora | None) -> None:
    result = head_changes(sample_of(tiny_classifier(tiny_bert, lora=lora), 3))
    for name in ("output_value", "query_key", "output_value_rank", "query_key_rank", "effect", "loss_change"):
        assert getattr(result, name) == [[0.0] * 3] * 2, name


def test_a_change_is_found_only_in_the_changed_head(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    attention = classifier.base.bert.encoder.layer[1].attention
    with torch.no_grad():
        attention.self.value.weight[8:16] *= 4
        attention.self.key.bias[16:24] += (
            1  # biases count only in the effect; a key bias has none, because it is the same for all tokens
        )
        attention.self.value.bias[16:24] += 1
    result = head_changes(sample_of(classifier))
    assert result.output_value[1][1] == pytest.approx(3, rel=1e-12)
    value, output = attention.self.value.weight, attention.output.dense.weight
    singular = torch.linalg.svdvals((output[:, 8:16] @ value[8:16]).detach().double())[
        :8
    ]  # the change is a multiple of the product
    assert result.output_value_rank[1][1] == pytest.approx(effective_rank(singular.numpy()), rel=1e-5)
    for name, cells in (("output_value", {(1, 1)}), ("query_key", set()), ("effect", {(1, 1), (1, 2)})):
        moved = np.argwhere(np.array(getattr(result, name)) != 0)
        assert {tuple(cell) for cell in moved.tolist()} == cells, name


def rotation(width: int) -> Tensor:
    """Return a random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0].float()


def test_rotating_the_value_space_of_a_head_is_not_a_change(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    attention, rotated = classifier.base.bert.encoder.layer[0].attention, rotation(8)
    before = attention.self.value.weight[:8].detach().clone()
    with torch.no_grad():
        attention.self.value.weight[:8] = rotated @ attention.self.value.weight[:8]
        attention.self.value.bias[:8] = rotated @ attention.self.value.bias[:8]
        attention.output.dense.weight[:, :8] = attention.output.dense.weight[:, :8] @ rotated.T
        attention.self.query.weight[:8] = rotated @ attention.self.query.weight[:8]
        attention.self.key.weight[:8] = rotated @ attention.self.key.weight[:8]
    result = head_changes(sample_of(classifier, 3))
    slice_moved = float((attention.self.value.weight[:8] - before).detach().norm() / before.norm())
    assert slice_moved > 0.5  # a comparison of weights would report this as a change
    assert result.output_value[0][0] < 1e-5  # measured 2e-7, the rounding of rotated float32 weights
    assert result.query_key[0][0] < 1e-5
    assert result.effect[0][0] < 1e-7  # of second order


CHANGED_FAMILIES = [
    "albert",
    "deberta",
    "eurobert",
    "modernbert",
    "distilbert",
    "mobilebert",
    "nystromformer",
    "roformer",
]


@pytest.mark.parametrize("family", CHANGED_FAMILIES)
def test_a_change_is_found_in_any_layout_of_the_weights(family: str, tmp_path: Path) -> None:
    """A change of the value rows of head 1 appears in head 1 only, however the family arranges its rows."""
    classifier = build(save_checkpoint(family, tmp_path))
    site = attention_sites(classifier.base)[-1]
    value, output = (classifier.base.get_submodule(path) for path in (site.value, site.output))
    width = output.in_features // 3
    starts = {"albert": 8, "deberta": 3 * 8 + 16, "eurobert": 0, "modernbert": 2 * 24 + 8, "mobilebert": 4}
    start = starts.get(family, 8)
    with torch.no_grad():
        value.weight[start : start + width] *= 2
    result = head_changes(sample_of(classifier, 4, split=split_of(classifier)))
    layers = {"albert": [2, 3]}.get(family, [1])  # both layers of the last group
    heads = {"eurobert": [0, 1, 2]}.get(family, [1])  # its heads share one value projection
    expected = {(layer, head) for layer in layers for head in heads}
    moved = {tuple(cell) for cell in np.argwhere(np.array(result.output_value) != 0).tolist()}
    assert moved == expected
    assert [result.output_value[layer][head] for layer, head in moved] == pytest.approx([1.0] * len(expected), rel=1e-9)
    assert {tuple(cell) for cell in np.argwhere(np.array(result.effect) > 0).tolist()} == expected
    assert not np.array(result.query_key).any()


def test_the_biases_of_deberta_are_reset(tmp_path: Path) -> None:
    classifier = build(save_checkpoint("deberta", tmp_path))
    attention = classifier.base.deberta.encoder.layer[1].attention.self
    with torch.no_grad():
        attention.v_bias[16:24] += 1
        attention.q_bias[0:8] += 1
    result = head_changes(sample_of(classifier, 4, split=split_of(classifier)))
    assert np.argwhere(np.array(result.effect) > 0).tolist() == [[1, 0], [1, 2]]
    assert not np.array(result.output_value).any()


def test_resetting_all_heads_restores_the_base(tmp_path: Path, accelerator: Accelerator) -> None:
    """After all heads are reset, the projections equal those of the base except for the output bias."""
    count = 0
    for family in ("modernbert", "deberta", "eurobert", "xlm"):
        classifier = trained(build(save_checkpoint(family, tmp_path / family)), accelerator)
        model, base = merged_copy(classifier), load_base(classifier)
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad(), ExitStack() as stack:
            for head in matched_heads(model, base):
                stack.enter_context(reset_head(model, base, head))
            for site in attention_sites(base):
                for role in ROLES:
                    trained_module, base_module = (m.get_submodule(getattr(site, role)) for m in (model, base))
                    assert trained_module.weight.equal(base_module.weight)
                    assert (
                        role == "output" or trained_module.bias is None or trained_module.bias.equal(base_module.bias)
                    )
                    count += 1
            for name, p in base.named_parameters():
                if name.endswith(("q_bias", "v_bias")):
                    assert p.equal(model.get_parameter(name))
        assert all(kept[name].equal(p) for name, p in model.named_parameters())
    assert count == 4 * 2 * 4


def test_the_model_is_restored_even_after_an_error(classifier: Classifier) -> None:
    model, base = merged_copy(classifier), load_base(classifier)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = matched_heads(model, base)[4]

    def fail() -> None:
        with torch.no_grad(), reset_head(model, base, head):
            changed = [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]
            assert changed
            assert all("layer.1.attention" in name for name in changed)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_single_row_has_no_errors_and_results_can_be_loaded(tiny_bert: Path, tmp_path: Path) -> None:
    result = head_changes(sample_of(tiny_classifier(tiny_bert), 1))
    assert result.effect_errors == [[None] * 3] * 2
    write_json(tmp_path / "changes.json", result)
    assert read_json(tmp_path / "changes.json", HeadChanges) == result


def test_divergence_of_each_problem_type() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 3).double()
    p, q = first.sigmoid(), second.sigmoid()
    binary = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(divergence(first, second, "multi_label_classification"), binary.mean(-1))
    torch.testing.assert_close(divergence(first[:, :1], second[:, :1], "regression"), (first[:, 0] - second[:, 0]) ** 2)
    p, q = first.softmax(-1), second.softmax(-1)
    torch.testing.assert_close(
        divergence(first, second, "single_label_classification"), (p * (p.log() - q.log())).sum(-1)
    )
