from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from finetune.errors import ModelError
from finetune.heads.pruning import (
    check_pruned,
    footprint,
    heads_to_prune,
    measure_speed,
    pruned_classifier,
    write_zeroed,
)
from finetune.models.attention_sites import AttentionSite, attention_sites, pruned_heads
from finetune.models.building import pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.head_pruning import prune_heads
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from tests.conftest import SENTENCES
from tests.models.test_head_gates import bert_lora, small
from tests.support.families import build, save_checkpoint
from tests.support.helpers import FLOAT32, ROLES, tiny_classifier

CPU = torch.device("cpu")
TEXTS = [(sentence,) for sentence in SENTENCES]
CUT = {0: [1], 1: [0, 2]}
ORDER = [(1, 0), (0, 2), (1, 2), (1, 1), (0, 0), (0, 1)]


def sites(heads: list[int], *, shared: bool = False, groups: int | None = None) -> list[AttentionSite]:
    """Sites of layers with these numbers of heads."""
    return [
        AttentionSite(layer, count, groups or count, *("" if shared else f"{layer}.{role}" for role in ROLES))
        for layer, count in enumerate(heads)
    ]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0, {}),
        (0.16, {}),  # 0.96 of a head
        (0.17, {1: [0]}),
        (0.5, {0: [2], 1: [0, 2]}),
        (4 / 6, {0: [0, 2], 1: [0, 2]}),  # head 1 of layer 1 is its last, so that the next one goes
        (1, {0: [0, 2], 1: [0, 2]}),
    ],
)
def test_the_first_of_the_order_go(share: float, expected: dict[int, list[int]]) -> None:
    assert heads_to_prune(ORDER, sites([3, 3]), share) == expected


def test_the_count_is_that_of_decimal_shares() -> None:
    order = [(layer, head) for head in range(10) for layer in range(10)]
    for percent in range(91):
        found = heads_to_prune(order, sites([10] * 10), percent / 100)
        assert sum(map(len, found.values())) == percent  # 0.29 * 100 is 28.999999999999996


def test_layers_may_have_different_numbers_of_heads() -> None:
    order = [(0, 0), (1, 1), (1, 0), (2, 1), (2, 0), (2, 2)]
    assert heads_to_prune(order, sites([1, 2, 3]), 1.0) == {1: [1], 2: [0, 1]}


def test_layers_that_share_weights_lose_the_same_heads() -> None:
    # Mean places: head 0 (0 + 5) / 2, head 1 (1 + 2) / 2, head 2 (3 + 4) / 2.
    order = [(0, 0), (1, 1), (0, 1), (0, 2), (1, 2), (1, 0)]
    assert heads_to_prune(order, sites([3, 3], shared=True), 0.33) == {}  # 1.98 heads, but they go by two
    assert heads_to_prune(order, sites([3, 3], shared=True), 0.34) == {0: [1], 1: [1]}
    assert heads_to_prune(order, sites([3, 3], shared=True), 0.7) == {0: [0, 1], 1: [0, 1]}
    assert heads_to_prune(order, sites([3, 3], shared=True), 1.0) == {0: [0, 1], 1: [0, 1]}


def test_query_heads_that_share_a_key_go_together() -> None:
    order = [(0, 0), (0, 4), (0, 5), (0, 1), (0, 2), (0, 3)]
    assert heads_to_prune(order, sites([6], groups=3), 0.32) == {}
    assert heads_to_prune(order, sites([6], groups=3), 0.34) == {0: [0, 1]}  # places 0 and 3 come before 1 and 2
    assert heads_to_prune(order, sites([6], groups=3), 1) == {0: [0, 1, 4, 5]}


@pytest.mark.parametrize(
    ("order", "share", "said"),
    [
        (ORDER, 1.5, "share of heads to prune is 1.5; it must be from 0 to 1"),
        (ORDER, float("nan"), "share of heads to prune is nan"),
        (ORDER[1:], 0.5, r"must name each of the 6 heads once; .*\(1, 0\) is wrong"),
        ([*ORDER[1:], (0, 2)], 0.5, r"must name each of the 6 heads once; .*\(1, 0\) is wrong"),
        ([*ORDER, (0, 2)], 0.5, r"must name each of the 6 heads once; .*\(0, 2\) is wrong"),
        ([*ORDER[1:], (1, 7)], 0.5, r"must name each of the 6 heads once; .*\(1, 0\) is wrong"),
    ],
)
def test_strange_orders_are_refused(order: list[tuple[int, int]], share: float, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        heads_to_prune(order, sites([3, 3]), share)


def bert(checkpoint: Path) -> Classifier:
    return tiny_classifier(checkpoint)


def low_lora(checkpoint: Path) -> Classifier:
    """LoRA on a base in bfloat16, whose new classification head is held in float32."""
    source = Source(str(checkpoint), dtype="bfloat16")
    found = pretrained_classifier(
        source,
        load_tokenizer(source),
        label_names=("no", "yes"),
        problem_type="single_label_classification",
        max_length=16,
        lora=Lora(2, 4, 0.0, ROLES),
    )
    torch.manual_seed(3)
    for name, parameter in found.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return found


@pytest.mark.parametrize("make", [bert, bert_lora, low_lora, small], ids=lambda make: make.__name__)
def test_a_pruned_copy_is_saved_and_read_back(
    make: Callable[[Path], Classifier], tiny_bert: Path, tmp_path: Path
) -> None:
    whole = make(tiny_bert)
    before = copy.deepcopy(whole.model.state_dict())
    pruned = pruned_classifier(whole, CUT)
    # Measured: 8e-7, with adapters 1.1e-6; in bfloat16 0.06 of logits up to 3.8, for merged weights are rounded once.
    assert check_pruned(whole, pruned, CUT, TEXTS) < (1e-1 if make is low_lora else 1e-5)
    merged = pruned_classifier(whole, {})
    assert check_pruned(merged, pruned, CUT, TEXTS) < (5e-2 if make is low_lora else 1e-5)
    assert all(tensor.equal(before[name]) for name, tensor in whole.model.state_dict().items())
    assert not pruned.model.training
    assert all(parameter.requires_grad for parameter in pruned.model.parameters())
    assert {p.dtype for p in pruned.model.parameters()} == {torch.bfloat16 if make is low_lora else torch.float32}
    save_classifier(pruned, tmp_path / "pruned")
    again = load_classifier(tmp_path / "pruned")
    assert check_reload(pruned, again, TEXTS, CPU) <= 1e-5
    assert pruned_heads(again.base.config) == CUT
    assert write_zeroed(again, tmp_path / "zeroed", TEXTS) < (5e-2 if make is low_lora else 1e-5)  # 1.9e-6; 0.0
    if make is not small:  # an own class, of which transformers does not know
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "zeroed").eval()
        assert sum(p.numel() for p in stock.parameters()) == sum(p.numel() for p in whole.base.parameters()) - sum(
            p.numel() for name, p in whole.base.named_parameters() if "lora" in name or "original_module" in name
        )


def test_what_was_frozen_stays_frozen(tiny_bert: Path) -> None:
    whole = bert(tiny_bert)
    whole.base.bert.embeddings.requires_grad_(False)
    pruned = pruned_classifier(whole, CUT)
    assert {n for n, p in pruned.base.named_parameters() if not p.requires_grad} == {
        n for n, p in whole.base.named_parameters() if not p.requires_grad
    } != set()  # fmt: skip


def test_without_heads_it_is_a_merged_copy(tiny_bert: Path) -> None:
    whole = bert_lora(tiny_bert)
    merged = pruned_classifier(whole, {})
    assert check_pruned(whole, merged, {}, TEXTS) < FLOAT32
    assert not any("lora" in name for name, _ in merged.base.named_parameters())
    assert pruned_heads(merged.base.config) == {}


def test_a_pruned_classifier_is_pruned_on(tiny_bert: Path) -> None:
    once = pruned_classifier(bert(tiny_bert), {0: [1], 1: [2]})
    again = heads_to_prune([(0, 1), (1, 0), (0, 0), (1, 1)], attention_sites(once.base), 0.5)
    assert again == {0: [1], 1: [0]}
    twice = pruned_classifier(once, again)
    assert check_pruned(once, twice, again, TEXTS) < FLOAT32
    assert pruned_heads(twice.base.config) == {0: [1, 2], 1: [0, 2]}
    assert pruned_heads(once.base.config) == {0: [1], 1: [2]}


def test_families_are_pruned_by_groups_of_their_own(tmp_path: Path) -> None:
    whole = build(save_checkpoint("albert", tmp_path))
    found = attention_sites(whole.base)
    heads = heads_to_prune([(site.layer, head) for head in range(3) for site in found], found, 0.5)
    assert heads == {0: [0, 1], 1: [0, 1], 2: [0], 3: [0]}  # layers 0 and 1 share their weights, and 2 and 3
    assert check_pruned(whole, pruned_classifier(whole, heads), heads, TEXTS) < FLOAT32


def test_the_check_sees_other_heads_and_other_weights(tiny_bert: Path) -> None:
    whole = bert(tiny_bert)
    with pytest.raises(ModelError, match=r"the logits of the pruned model differ by .*; please report it"):
        check_pruned(whole, pruned_classifier(whole, CUT), {0: [0], 1: [0, 2]}, TEXTS)
    pruned = pruned_classifier(whole, CUT)
    with torch.no_grad():
        pruned.base.bert.encoder.layer[1].attention.self.value.bias.add_(0.1)
    with pytest.raises(ModelError, match="the logits of the pruned model differ by"):
        check_pruned(whole, pruned, CUT, TEXTS)


def test_adapters_are_not_written_as_zeros(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="merge the adapters first"):
        write_zeroed(bert_lora(tiny_bert), tmp_path, TEXTS)


class _Slow(nn.Module):
    """Counts its calls by name, and takes its time."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, **inputs: torch.Tensor) -> None:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.calls.append(self.name)


def test_speed_is_measured_in_turns(tiny_bert: Path) -> None:
    whole, calls = bert(tiny_bert), list[str]()
    pair = [replace(whole, model=_Slow(name, calls)) for name in "ba"]
    before, after = measure_speed(*pair, TEXTS, batch_size=4, rounds=4)
    assert before > 0
    assert after > 0
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa" + "aabb" + "bbaa"  # two batches; the first turn warms up
    assert pair[0].model.training


def test_speed_of_real_classifiers_leaves_them_as_they_were(tiny_bert: Path) -> None:
    whole = bert(tiny_bert)
    pruned = pruned_classifier(whole, CUT)
    expected = logits_of(whole, TEXTS, CPU)
    rates = measure_speed(whole, pruned, TEXTS, batch_size=3, rounds=1)
    assert all(rate > 1 for rate in rates)
    assert all(parameter.requires_grad for parameter in whole.model.parameters())
    assert logits_of(whole, TEXTS, CPU).equal(expected)


def test_the_footprint_counts_weights_and_files(tiny_bert: Path, tmp_path: Path) -> None:
    whole = bert(tiny_bert)
    save_classifier(whole, tmp_path / "whole")
    pruned = pruned_classifier(whole, CUT)
    save_classifier(pruned, tmp_path / "pruned")
    before, after = footprint(whole, tmp_path / "whole", 2.0), footprint(pruned, tmp_path / "pruned", 3.0)
    assert before.parameters - after.parameters == 3 * (3 * (8 * 24 + 8) + 24 * 8)
    # Four bytes for each, and a header that tells shapes in fewer or more characters.
    assert before.model_bytes - after.model_bytes == pytest.approx(4 * 2376, abs=200)
    assert before.model_bytes == (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert after.rows_per_second == 3.0


def test_heads_that_cannot_go_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="layer 1 would lose all its 3 heads"):
        pruned_classifier(bert(tiny_bert), {1: [0, 1, 2]})
    whole = bert(tiny_bert)
    prune_heads(whole.base, CUT)
    with pytest.raises(ModelError, match="layer 1 has no head 2; its heads are 0 to 0"):
        pruned_classifier(whole, {1: [2]})
