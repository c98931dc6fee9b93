from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from finetune.errors import ModelError
from finetune.heads.product_change import effective_rank, product_change
from finetune.heads.weight_changes import head_changes, load_base, matched_heads, merged_copy, reset_head
from finetune.models.attention_sites import ROLES, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.lora import Lora
from finetune.models.losses import divergence
from finetune.runs.head_results import HeadChanges
from finetune.runs.json_files import read_json, write_json
from tests.conftest import SENTENCES
from tests.models.test_head_gates import small
from tests.support.families import build, save_checkpoint, split_of, train_three_steps
from tests.support.helpers import sample_of, tiny_classifier

LORA = Lora(2, 8, 0.0, ROLES)
WAYS: dict[str, Lora | None] = {"lora": LORA, "dora": replace(LORA, use_dora=True), "full": None}
CPU = torch.device("cpu")
TEXTS = [(text,) for text in SENTENCES]


def trained(classifier: Classifier, accelerator: Accelerator) -> Classifier:
    torch.manual_seed(0)
    train_three_steps(classifier, accelerator)
    return classifier


@pytest.fixture(params=WAYS)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path, accelerator: Accelerator) -> Classifier:
    torch.manual_seed(0)
    found = tiny_classifier(tiny_bert, lora=WAYS[request.param], labels=("a", "b", "c", "d"))
    return trained(found, accelerator)


def effective_weights(classifier: Classifier, path: str) -> np.ndarray:
    """The linear map that a projection is, found by asking it: its answers to the unit vectors."""
    module = classifier.base.get_submodule(path)
    width = module.in_features
    with torch.no_grad():
        zero = module(torch.zeros(1, width))
        return (module(torch.eye(width)) - zero).double().numpy()  # (in, out)


def dense_change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Relative change and effective rank of whole (E, E) matrices."""
    singular = np.linalg.svd(after - before, compute_uv=False)
    shares = singular / singular.sum()
    entropy = -sum(p * np.log(p) for p in shares if p > 1e-9)
    return float(np.linalg.norm(after - before) / np.linalg.norm(before)), float(np.exp(entropy))


def test_every_product_equals_the_dense_computation(classifier: Classifier) -> None:
    found, base = head_changes(sample_of(classifier, 2)), load_base(classifier)
    start = replace(classifier, model=base)
    count = 0
    for site in attention_sites(base):
        old, new = ({role: effective_weights(c, getattr(site, role)) for role in ROLES} for c in (start, classifier))
        for head in range(3):
            own = slice(8 * head, 8 * head + 8)
            ov = [w["value"][:, own] @ w["output"][own] for w in (old, new)]
            qk = [w["query"][:, own] @ w["key"][:, own].T for w in (old, new)]
            for name, (before, after) in (("output_value", ov), ("query_key", qk)):
                relative, rank = dense_change(before, after)
                # Measured: 2e-6, the rounding of what the projections answer in float32.
                assert getattr(found, name)[site.layer][head] == pytest.approx(relative, rel=1e-3)
                assert getattr(found, f"{name}_rank")[site.layer][head] == pytest.approx(rank, rel=1e-3)
                count += 1
    assert count == 12


def hand_edited(classifier: Classifier, layer: int, head: int) -> Classifier:
    """A merged copy in which one head's rows and columns are the base's, written out for BERT."""
    model, base = merged_copy(classifier), load_base(classifier)
    own = slice(8 * head, 8 * head + 8)
    here, there = (m.bert.encoder.layer[layer].attention for m in (model, base))
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(here.self, name).weight[own] = getattr(there.self, name).weight[own]
            getattr(here.self, name).bias[own] = getattr(there.self, name).bias[own]
        here.output.dense.weight[:, own] = there.output.dense.weight[:, own]
    return replace(classifier, model=model)


def test_effects_equal_those_of_a_hand_edited_copy(classifier: Classifier) -> None:
    before = {name: p.detach().clone() for name, p in classifier.model.named_parameters()}
    sample = sample_of(classifier)
    found = head_changes(sample)
    labels = torch.as_tensor(sample.labels)
    logits = logits_of(replace(classifier, model=merged_copy(classifier)), TEXTS, CPU)
    for layer in range(2):
        for head in range(3):
            other = logits_of(hand_edited(classifier, layer, head), TEXTS, CPU)
            kl = F.kl_div(other.log_softmax(-1), logits.log_softmax(-1), reduction="none", log_target=True).sum(-1)
            rise = F.cross_entropy(other, labels, reduction="none") - F.cross_entropy(logits, labels, reduction="none")
            cells = [
                getattr(found, name)[layer][head]
                for name in ("effect", "effect_errors", "loss_change", "loss_change_errors")
            ]
            expected = [f(x) for x in (kl, rise) for f in (torch.mean, lambda x: x.std() / len(x) ** 0.5)]
            # Batches of other lengths are padded otherwise, in float32.
            assert cells == pytest.approx([float(x) for x in expected], abs=3e-5, rel=1e-3)
            assert abs(cells[0]) > 1e-4
    assert all(before[name].equal(p) for name, p in classifier.model.named_parameters())  # left as it was
    assert found.effect_measure == "KL divergence (nats)"
    assert (found.split, found.rows) == ("validation", 6)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_model_that_was_not_trained_did_not_change(tiny_bert: Path, lora: Lora | None) -> None:
    found = head_changes(sample_of(tiny_classifier(tiny_bert, lora=lora), 3))
    for name in ("output_value", "query_key", "output_value_rank", "query_key_rank", "effect", "loss_change"):
        assert getattr(found, name) == [[0.0] * 3] * 2, name


def test_a_planted_change_is_found_in_its_head_alone(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    attention = classifier.base.bert.encoder.layer[1].attention
    with torch.no_grad():
        attention.self.value.weight[8:16] *= 4
        attention.self.key.bias[16:24] += 1  # biases are in the effect only; a key's is the same for all tokens
        attention.self.value.bias[16:24] += 1
    found = head_changes(sample_of(classifier))
    assert found.output_value[1][1] == pytest.approx(3, rel=1e-12)
    value, output = attention.self.value.weight, attention.output.dense.weight
    singular = torch.linalg.svdvals((output[:, 8:16] @ value[8:16]).detach().double())[:8]  # of a multiple of itself
    assert found.output_value_rank[1][1] == pytest.approx(effective_rank(singular.numpy()), rel=1e-5)
    for name, cells in (("output_value", {(1, 1)}), ("query_key", set()), ("effect", {(1, 1), (1, 2)})):
        moved = np.argwhere(np.array(getattr(found, name)) != 0)
        assert {tuple(cell) for cell in moved.tolist()} == cells, name


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0].float()


def test_turning_a_heads_value_space_is_no_change(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    attention, turn = classifier.base.bert.encoder.layer[0].attention, rotation(8)
    before = attention.self.value.weight[:8].detach().clone()
    with torch.no_grad():
        attention.self.value.weight[:8] = turn @ attention.self.value.weight[:8]
        attention.self.value.bias[:8] = turn @ attention.self.value.bias[:8]
        attention.output.dense.weight[:, :8] = attention.output.dense.weight[:, :8] @ turn.T
        attention.self.query.weight[:8] = turn @ attention.self.query.weight[:8]
        attention.self.key.weight[:8] = turn @ attention.self.key.weight[:8]
    found = head_changes(sample_of(classifier, 3))
    slice_moved = float((attention.self.value.weight[:8] - before).detach().norm() / before.norm())
    assert slice_moved > 0.5  # what a slice of the update would say
    assert found.output_value[0][0] < 1e-5  # measured 2e-7, the rounding of turned float32 weights
    assert found.query_key[0][0] < 1e-5
    assert found.effect[0][0] < 1e-7  # of second order


FAMILIES_TO_TRY = [
    "albert",
    "deberta",
    "eurobert",
    "modernbert",
    "distilbert",
    "mobilebert",
    "nystromformer",
    "roformer",
]


@pytest.mark.parametrize("family", FAMILIES_TO_TRY)
def test_a_change_planted_by_hand_is_found_whatever_the_layout(family: str, tmp_path: Path) -> None:
    """The head's rows are found through its gate: what is written into value rows of head 1 must move it alone."""
    classifier = build(save_checkpoint(family, tmp_path))
    site = attention_sites(classifier.base)[-1]
    value, output = (classifier.base.get_submodule(path) for path in (site.value, site.output))
    width = output.in_features // 3
    starts = {"albert": 8, "deberta": 3 * 8 + 16, "eurobert": 0, "modernbert": 2 * 24 + 8, "mobilebert": 4}
    start = starts.get(family, 8)
    with torch.no_grad():
        value.weight[start : start + width] *= 2
    found = head_changes(sample_of(classifier, 4, split=split_of(classifier)))
    layers = {"albert": [2, 3]}.get(family, [1])  # both layers of the last group
    heads = {"eurobert": [0, 1, 2]}.get(family, [1])  # its heads share one value
    expected = {(layer, head) for layer in layers for head in heads}
    moved = {tuple(cell) for cell in np.argwhere(np.array(found.output_value) != 0).tolist()}
    assert moved == expected
    assert [found.output_value[layer][head] for layer, head in moved] == pytest.approx([1.0] * len(expected), rel=1e-9)
    assert {tuple(cell) for cell in np.argwhere(np.array(found.effect) > 0).tolist()} == expected
    assert not np.array(found.query_key).any()


def test_the_biases_of_deberta_are_put_back(tmp_path: Path) -> None:
    classifier = build(save_checkpoint("deberta", tmp_path))
    attention = classifier.base.deberta.encoder.layer[1].attention.self
    with torch.no_grad():
        attention.v_bias[16:24] += 1
        attention.q_bias[0:8] += 1
    found = head_changes(sample_of(classifier, 4, split=split_of(classifier)))
    assert np.argwhere(np.array(found.effect) > 0).tolist() == [[1, 0], [1, 2]]
    assert not np.array(found.output_value).any()


def test_all_own_parts_put_back_make_the_base(tmp_path: Path, accelerator: Accelerator) -> None:
    """Every head's own change taken back, nothing is left of training in the projections but the output's bias."""
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
                    own, before = (m.get_submodule(getattr(site, role)) for m in (model, base))
                    assert own.weight.equal(before.weight)
                    assert role == "output" or own.bias is None or own.bias.equal(before.bias)
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


def pruned(classifier: Classifier) -> Classifier:
    """Head 0 of layer 1 cut out, as the stock forward of BERT allows."""
    attention = classifier.base.bert.encoder.layer[1].attention
    for name in ("query", "key", "value"):
        old = getattr(attention.self, name)
        new = nn.Linear(24, 16)
        new.weight.data, new.bias.data = old.weight.data[8:].clone(), old.bias.data[8:].clone()
        setattr(attention.self, name, new)
    old = attention.output.dense
    attention.output.dense = nn.Linear(16, 24)
    attention.output.dense.weight.data, attention.output.dense.bias.data = old.weight.data[:, 8:].clone(), old.bias.data
    attention.self.num_attention_heads, attention.self.all_head_size = 2, 16
    classifier.base.config.pruned_heads = {1: [0]}
    return classifier


def test_a_pruned_model_is_compared_with_the_heads_it_kept(tiny_bert: Path) -> None:
    classifier = pruned(tiny_classifier(tiny_bert))
    found = head_changes(sample_of(classifier, 3))
    assert found.output_value == [[0.0] * 3, [0.0, 0.0, None]]
    assert found.effect_errors == [[0.0] * 3, [0.0, 0.0, None]]
    with torch.no_grad():
        classifier.base.bert.encoder.layer[1].attention.self.value.weight[8:] *= 2  # head 2 of the base
    found = head_changes(sample_of(classifier, 3))
    assert found.output_value == [[0.0] * 3, [0.0, pytest.approx(1), None]]
    assert found.effect[1][1] > 0


def test_a_single_row_has_no_errors_and_results_read_back(tiny_bert: Path, tmp_path: Path) -> None:
    found = head_changes(sample_of(tiny_classifier(tiny_bert), 1))
    assert found.effect_errors == [[None] * 3] * 2
    write_json(tmp_path / "changes.json", found)
    assert read_json(tmp_path / "changes.json", HeadChanges) == found


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


def test_products_from_factors_by_hand() -> None:
    rng = np.random.default_rng(0)
    a0, a1, b0, b1 = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    found = product_change((a0, b0), (a1, b1))
    assert (found.relative, found.effective_rank) == pytest.approx(dense_change(a0 @ b0, a1 @ b1), rel=1e-10)
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.zeros(4)) == 0
    assert product_change((0 * a0, b0), (a1, b0)).relative is None
    tiny = product_change((a0, b0), (a0 * (1 + 1e-12), b0)).relative
    assert tiny == pytest.approx(1e-12, rel=1e-3)  # no difference of two large numbers


@pytest.mark.parametrize(
    ("family", "why"), [("squeezebert", "grouped convolutions"), ("convbert", "a convolution is mix")]
)
def test_heads_that_are_no_slices_are_refused(family: str, why: str, tmp_path: Path) -> None:
    classifier = build(save_checkpoint(family, tmp_path))
    with pytest.raises(
        ModelError, match=rf"heads of a '{family}' model cannot be compared .*{why}.*importance can still be"
    ):
        head_changes(sample_of(classifier, 4, split=split_of(classifier)))


def test_without_a_base_there_is_nothing_to_compare_with(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="there is no base checkpoint to compare with; fine-tune a pretrained one"):
        head_changes(sample_of(small(tiny_bert)))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"attn_implementation": "somebody/kernel"}, "attn_implementation 'somebody/kernel'; remove the entry"),
        ({"vocab_size": 10**9}, "vocab_size 1000000000, above 10000000; correct the entry"),
    ],
)
def test_the_config_of_a_base_is_checked_before_it_is_built(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], said: str
) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    classifier = tiny_classifier(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | entry))
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda *args, **kwargs: pytest.fail("built")
    )
    with pytest.raises(ModelError, match=said):
        load_base(classifier)


def test_a_head_that_the_base_lost_is_told(tiny_bert: Path) -> None:
    whole, less = tiny_classifier(tiny_bert).base, pruned(tiny_classifier(tiny_bert)).base
    with pytest.raises(ModelError, match="head 0 of layer 1 is not in the base checkpoint"):
        matched_heads(whole, less)
