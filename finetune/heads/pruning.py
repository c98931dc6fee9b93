"""Prune heads for good: choose them from an order, cut them out, prove that nothing else changed, measure the gain.

C classes, H heads, L layers
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from finetune.errors import ModelError
from finetune.heads.gated_forward import frozen
from finetune.models.attention_sites import AttentionSite, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.freezing import undo_keep_float32
from finetune.models.head_gates import head_gates, max_num_heads
from finetune.models.head_pruning import prune_heads, unpruned_copy
from finetune.models.lora import merge_adapters
from finetune.models.precision import without_flash_attention
from finetune.models.pretrained import Source
from finetune.runs.results import ModelCost

_CPU = torch.device("cpu")


def heads_to_prune(
    order: Sequence[tuple[int, int]], sites: Sequence[AttentionSite], share: float
) -> dict[int, list[int]]:
    """Return which heads to cut out, by layer: the first of `order`, as many as the share allows.

    The count is rounded down, and a layer's last head is passed over, so that fewer may be returned. What can only
    go together goes together: the same head of the layers that share their weights (ALBERT), the query heads that
    share a key and a value. Such a group stands in the order at the mean of its heads' places.

    Args:
        order: every head of `sites` once, as (layer, head), least important first.
        share: of the heads that `sites` count, 0 to 1.

    Raises:
        ModelError: the share is outside 0 to 1, or the order does not name every head once.
    """
    heads = [(site.layer, head) for site in sites for head in range(site.num_heads)]
    if not 0 <= share <= 1:
        raise ModelError(f"the share of heads to prune is {share:g}; it must be from 0 to 1")
    places = {head: place for place, head in enumerate(order)}
    if len(order) != len(heads) or places.keys() != set(heads):
        odd = sorted(places.keys() ^ set(heads)) or [head for head in heads if order.count(head) > 1]
        raise ModelError(f"an order of heads must name each of the {len(heads)} once; see layer and head {odd[0]}")
    groups: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for site in sites:
        size = site.num_heads // site.num_key_value_heads
        for head in range(site.num_heads):
            groups.setdefault((site.output, head // size), []).append((site.layer, head))
    room = math.floor(share * len(heads) + 1e-9)  # 0.29 * 100 is a little less than 29
    chosen: dict[int, list[int]] = {site.layer: [] for site in sites}
    most = {site.layer: site.num_heads - site.num_heads // site.num_key_value_heads for site in sites}
    for group in sorted(groups.values(), key=lambda group: sum(places[head] for head in group) / len(group)):
        if len(group) > room:
            break
        if all(len(chosen[layer]) < most[layer] for layer, _ in group):
            room -= len(group)
            for layer, head in group:
                chosen[layer].append(head)
    return {layer: sorted(numbers) for layer, numbers in chosen.items() if numbers}


def pruned_classifier(classifier: Classifier, heads: Mapping[int, Sequence[int]]) -> Classifier:
    """Return a copy, in evaluation mode, with these heads cut out; without any, what a pruned one is compared with.

    Adapters are merged first, and then all weights ask for gradients; otherwise those do that did. The copy is held
    in the dtype of its source, as `load_classifier` reads it back.

    Raises:
        ModelError: the heads cannot be cut out (see `prune_heads`), or the adapters cannot be merged.
    """
    adapted = classifier.model is not classifier.base
    model = merge_adapters(copy.deepcopy(classifier.model))
    if adapted:
        model.requires_grad_(True)
    undo_keep_float32(model, getattr(torch, classifier.source.dtype if classifier.source else "float32"))
    prune_heads(model, heads)
    return Classifier(model.eval(), classifier.tokenizer, classifier.max_length, classifier.source)


def check_pruned(
    classifier: Classifier, pruned: Classifier, heads: Mapping[int, Sequence[int]], texts: Sequence[Sequence[str]]
) -> float:
    """Return the largest difference of a logit between the pruned classifier and gates of 0 on the whole one.

    Raises:
        ModelError: it is above the rounding of sums in another order; see `_same`.
    """
    sites = attention_sites(classifier.base)
    gates = torch.ones(len(sites), max_num_heads(sites))
    for layer, numbers in heads.items():
        gates[layer, list(numbers)] = 0
    with head_gates(classifier.base, sites, gates):
        expected = logits_of(classifier, texts, _CPU)
    return _same(logits_of(pruned, texts, _CPU), expected, classifier, "the pruned model")


def write_zeroed(classifier: Classifier, folder: Path, texts: Sequence[Sequence[str]]) -> float:
    """Write the pruned classifier in whole sizes, with 0 for what was cut out, for stock transformers to read.

    Returns:
        The largest difference of a logit between what stock `from_pretrained` reads back and the classifier.

    Raises:
        ModelError: there are adapters in the classifier, or the difference is above rounding.
    """
    expected = logits_of(classifier, texts, _CPU)
    folder.mkdir(parents=True, exist_ok=True)
    unpruned_copy(classifier.base).save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    source = classifier.source or Source(str(folder))
    options = replace(source, revision="main", use_safetensors=True).loading_options()  # as they were just written
    plain = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    found = logits_of(replace(classifier, model=plain), texts, _CPU)
    return _same(found, expected, classifier, "the zero-filled model")


def _same(found: Tensor, expected: Tensor, classifier: Classifier, what: str) -> float:
    """Return the largest difference of two tables of logits (B, C).

    Raises:
        ModelError: it is above 1e-4 of the largest logit in float32 (measured on MiniLM and all families: at most
            5e-6), or above 3e-2 below float32, where a merged weight is rounded once more (measured: 1.6e-2).
    """
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    lowest = min(torch.finfo(p.dtype).bits for p in classifier.model.parameters() if p.is_floating_point())
    if not difference <= (1e-4 * max(1e-2, largest) if lowest >= 32 else 3e-2 * max(1.0, largest)):
        raise ModelError(f"{what}'s logits differ by {difference:g}; please report it")
    return difference


@torch.no_grad()
def measure_speed(
    before: Classifier,
    after: Classifier,
    texts: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    turns: int = 5,
    device: torch.device = _CPU,
) -> tuple[float, float]:
    """Return rows per second of both in evaluation, measured in turns within one run: compare them by their ratio.

    Each is the median over the turns, after one that is not counted. Tokenising is not timed; batches hold rows of
    like length. Adapters cost time, so let `before` be merged: `pruned_classifier(classifier, {})`.
    """
    rows = sorted(texts, key=lambda row: sum(map(len, row)))
    batches = []
    for start in range(0, len(rows), batch_size):
        columns = [list(column) for column in zip(*rows[start : start + batch_size], strict=True)]
        inputs = before.tokenizer(
            *columns, truncation=True, max_length=before.max_length, padding=True, return_tensors="pt"
        )
        batches.append(inputs.to(device))

    def seconds(classifier: Classifier) -> float:
        synchronize()
        start = time.perf_counter()
        for inputs in batches:
            classifier.model(**inputs)
        synchronize()
        return time.perf_counter() - start

    synchronize = torch.get_device_module(device).synchronize
    pair = (before, after)
    taken: tuple[list[float], list[float]] = ([], [])
    with (
        without_flash_attention(before.model),
        without_flash_attention(after.model),
        frozen(before.model.to(device)),
        frozen(after.model.to(device)),
    ):
        for turn in range(-1, turns):
            for which in (0, 1) if turn % 2 else (1, 0):  # who goes first alternates
                spent = seconds(pair[which])
                if turn >= 0:
                    taken[which].append(spent)
    return len(rows) / statistics.median(taken[0]), len(rows) / statistics.median(taken[1])


def footprint(classifier: Classifier, folder: Path, rows_per_second: float) -> ModelCost:
    """Return what the classifier costs, given the folder of its whole weights (no adapter) and its measured speed."""
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in classifier.base.parameters()),
        model_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        rows_per_second=rows_per_second,
    )
