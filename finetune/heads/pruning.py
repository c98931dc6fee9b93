"""Physical pruning of heads and neurons: choose heads from an order, remove parts, check the logits, measure the speed.

B batch, C classes
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.heads.latency import BATCH_SIZE, timed_passes, tokenized_batches
from finetune.models.attention_sites import AttentionSite, all_heads, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.feed_forward_sites import feed_forward_sites, max_num_neurons
from finetune.models.freezing import undo_keep_float32
from finetune.models.head_gates import head_gates, max_num_heads
from finetune.models.head_pruning import prune_heads
from finetune.models.lora import merge_adapters
from finetune.models.neuron_gates import neuron_gates
from finetune.models.neuron_pruning import prune_neurons
from finetune.models.pretrained import Source, load_config
from finetune.models.pruned_model import classifier_class, unpruned_copy
from finetune.models.saving import save_classifier
from finetune.runs.results import ModelCost

_CPU = torch.device("cpu")
NOTHING: Mapping[int, Sequence[int]] = MappingProxyType({})  # removed from no layer


def heads_to_prune(
    order: Sequence[tuple[int, int]], sites: Sequence[AttentionSite], share: float
) -> dict[int, list[int]]:
    """Return the heads to remove, by layer: the first of `order`, as many as the share allows.

    The number is rounded down, and the last head of a layer is skipped, so fewer may be returned. Heads that can only
    be removed together form a group: the same head of layers that share their weights (ALBERT), and the query heads
    that share a key and a value. The position of a group in the order is the mean position of its heads.

    Args:
        order: every head of `sites` once, as (layer, head), least important first.
        share: of all heads of `sites`, 0 to 1.

    Raises:
        ModelError: the share is outside 0 to 1, or the order does not name every head once.
    """
    heads = all_heads(sites)
    if not 0 <= share <= 1:
        raise ModelError(f"the share of heads to prune is {share:g}; it must be from 0 to 1")
    positions = {head: position for position, head in enumerate(order)}
    if len(order) != len(heads) or positions.keys() != set(heads):
        wrong = sorted(positions.keys() ^ set(heads)) or [head for head in heads if order.count(head) > 1]
        raise ModelError(
            f"an order of heads must name each of the {len(heads)} heads once; (layer, head) {wrong[0]} is wrong"
        )
    groups: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for site in sites:
        size = site.num_heads // max(1, site.num_key_value_heads)  # an empty layer has neither
        for head in range(site.num_heads):
            groups.setdefault((site.output, head // size), []).append((site.layer, head))
    remaining = math.floor(share * len(heads) + 1e-9)  # 0.29 * 100 is a little less than 29
    chosen: dict[int, list[int]] = {site.layer: [] for site in sites}
    max_removed = {site.layer: site.num_heads - site.num_heads // max(1, site.num_key_value_heads) for site in sites}
    for group in sorted(groups.values(), key=lambda group: sum(positions[head] for head in group) / len(group)):
        if len(group) > remaining:
            break
        if all(len(chosen[layer]) < max_removed[layer] for layer, _ in group):
            remaining -= len(group)
            for layer, head in group:
                chosen[layer].append(head)
    return {layer: sorted(numbers) for layer, numbers in chosen.items() if numbers}


def pruned_classifier(
    classifier: Classifier, heads: Mapping[int, Sequence[int]], neurons: Mapping[int, Sequence[int]] = NOTHING
) -> Classifier:
    """Return a copy in evaluation mode without these heads and feed-forward neurons, by layer.

    If nothing is removed, the result is a copy to compare with.

    Adapters are merged first, and all weights then require gradients; without adapters `requires_grad` is kept. The
    copy has the dtype of its source, as `load_classifier` would load it.

    Raises:
        ModelError: the heads or neurons cannot be removed (see `prune_heads` and `prune_neurons`), or the adapters
            cannot be merged.
    """
    adapted = classifier.model is not classifier.base
    model = merge_adapters(copy.deepcopy(classifier.model))
    if adapted:
        model.requires_grad_(True)
    undo_keep_float32(model, getattr(torch, classifier.source.dtype if classifier.source else "float32"))
    prune_heads(model, heads)
    prune_neurons(model, neurons)
    return replace(
        classifier, model=model.eval(), new_parameters=(), base_checksum=None, initial={}, notes=(), conformal=None
    )


def check_pruned(
    classifier: Classifier,
    pruned: Classifier,
    heads: Mapping[int, Sequence[int]],
    texts: Sequence[Sequence[str]],
    neurons: Mapping[int, Sequence[int]] = NOTHING,
) -> float:
    """Return the largest difference of a logit between the pruned classifier and gates of 0 on the full classifier.

    Raises:
        ModelError: the difference exceeds rounding; see `_check_equal`.
    """
    with gates_of_zero(classifier.base, heads, neurons):
        expected = logits_of(classifier, texts, _CPU)
    return _check_equal(logits_of(pruned, texts, _CPU), expected, classifier, "the pruned model")


@contextmanager
def gates_of_zero(
    base: PreTrainedModel, heads: Mapping[int, Sequence[int]], neurons: Mapping[int, Sequence[int]] = NOTHING
) -> Iterator[None]:
    """Give these heads and feed-forward neurons, by layer, gates of 0 inside the block, and all others gates of 1."""
    sites = attention_sites(base)
    gates = _ones_and_zeros(len(sites), max_num_heads(sites), heads)
    with ExitStack() as stack:
        stack.enter_context(head_gates(base, sites, gates))
        if any(neurons.values()):
            networks = feed_forward_sites(base)
            gates = _ones_and_zeros(len(networks), max_num_neurons(networks), neurons)
            stack.enter_context(neuron_gates(base, networks, gates))
        yield


def _ones_and_zeros(layers: int, parts: int, zeros: Mapping[int, Sequence[int]]) -> Tensor:
    gates = torch.ones(layers, parts)
    for layer, numbers in zeros.items():
        gates[layer, list(numbers)] = 0
    return gates


def write_zeroed(classifier: Classifier, folder: Path, texts: Sequence[Sequence[str]]) -> float:
    """Save the pruned classifier with its original sizes and zeros for all that was removed, for plain transformers.

    Returns:
        The largest difference of a logit between the classifier and what plain `from_pretrained` loads.

    Raises:
        ModelError: the classifier has adapters, or the difference exceeds rounding.
    """
    expected = logits_of(classifier, texts, _CPU)
    save_classifier(replace(classifier, model=unpruned_copy(classifier.base)), folder)
    source = classifier.source or Source(str(folder))
    saved = replace(source, name=str(folder), revision="main", use_safetensors=True)  # the files just written
    config = load_config(saved)
    plain = classifier_class(config).from_pretrained(folder, config=config, **saved.loading_options())
    logits = logits_of(replace(classifier, model=plain), texts, _CPU)
    return _check_equal(logits, expected, classifier, "the zero-filled model")


def _check_equal(logits: Tensor, expected: Tensor, classifier: Classifier, what: str) -> float:
    """Return the largest difference between logits (B, C) and the expected logits.

    Raises:
        ModelError: it is above 1e-4 of the largest logit in float32 (measured on MiniLM and all families: at most
            5e-6), or above 3e-2 below float32, where merging rounds the weights once more (measured: 1.6e-2).
    """
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    lowest = min(torch.finfo(p.dtype).bits for p in classifier.model.parameters() if p.is_floating_point())
    if not difference <= (1e-4 * max(1e-2, largest) if lowest >= 32 else 3e-2 * max(1.0, largest)):
        raise ModelError(f"the logits of {what} differ by {difference:g}; please report it")
    return difference


def measure_speed(
    before: Classifier,
    after: Classifier,
    texts: Sequence[Sequence[str]],
    *,
    batch_size: int = BATCH_SIZE,
    rounds: int = 5,
    device: torch.device = _CPU,
) -> tuple[float, float]:
    """Return rows per second of both classifiers in evaluation mode, measured interleaved; compare their ratio.

    See `timed_passes`. Tokenization is not timed. Adapters cost time, so `before` should be merged:
    `pruned_classifier(classifier, {})`.
    """
    batches = tokenized_batches(before, texts, device, batch_size)
    seconds = timed_passes([before, after], batches, device, rounds)
    return len(texts) / seconds[0], len(texts) / seconds[1]


def footprint(classifier: Classifier, folder: Path, rows_per_second: float) -> ModelCost:
    """Return parameters, bytes and speed of a classifier, given the folder of its full weights and its speed."""
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in classifier.base.parameters()),
        model_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        rows_per_second=rows_per_second,
    )
