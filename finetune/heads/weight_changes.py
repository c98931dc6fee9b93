"""What training changed, head by head, against the base checkpoint; adapters and full fine-tuning by one path.

Adapters are merged into a copy of the classifier, and its attention projections are compared with those of the base
checkpoint, which is loaded again.

Slices of the update itself (the head's rows of a weight's change) would not do as a measure: with any orthogonal R,
W_V R and R^T W_O make the same head as W_V and W_O, and a training that did nothing but turn a head's value space
would seem to change both, although no output moves. What the head does is in two products that R drops out of,

    W_V W_O      what is written for what is read,
    W_Q W_K^T    which token attends to which,

and a head's relative change is ||after - before||_F / ||before||_F of each. Biases are not in them; they are in the
effect. With DeBERTa's projected positions, or rotary ones, W_Q W_K^T is not all there is to a score, but its part
from content, or at distance 0.

    N rows, C classes, L layers, H heads, D head width, E hidden size
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from finetune.errors import ModelError
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.heads.product_change import Array, product_change
from finetune.models.architectures import family_of
from finetune.models.attention_sites import ROLES, AttentionSite, attention_sites, pruned_heads
from finetune.models.classifier import Classifier
from finetune.models.head_gates import max_num_heads
from finetune.models.losses import divergence, per_example_loss
from finetune.models.pretrained import load_config, model_load_errors
from finetune.runs.head_results import HeadChanges

EFFECT_MEASURES = {
    "single_label_classification": "KL divergence (nats)",
    "multi_label_classification": "mean KL divergence of a label (nats)",
    "regression": "squared difference of values",
}


@dataclass(frozen=True)
class MatchedHead:
    """One head: where it is in the trained model and in the base, whose heads may be more."""

    trained: AttentionSite
    base: AttentionSite
    number: int
    base_number: int
    width: int

    def slices(self, role: str) -> tuple[list[int], list[int]]:
        """Return its rows (of the output projection: columns), in the trained model and in the base."""
        return (
            self.trained.slices(role, [self.number], self.width),
            self.base.slices(role, [self.base_number], self.width),
        )


def head_changes(sample: GatedRows, *, effects: bool = True) -> HeadChanges:
    """Return how far each head's products moved, and what taking the head's own change back does to the sample's rows.

    The effect costs a forward pass of the sample for each head that changed: bound its rows. A projection that
    several layers share (ALBERT) is put back for all of them at once, and each reports it. Heads that share a key and a
    value have these put back together. The classifier is left as it is; predictions are those of a merged copy, which
    in lower precision than float32 rounds its weights once more.

    Args:
        effects: whether to measure effects; without, no row is looked at.

    Raises:
        ModelError: the classifier was built from scratch, its heads are not slices of its projections, the base
            checkpoint cannot be loaded or lacks a head, or peft cannot merge the adapters.
    """
    classifier = sample.classifier
    _refuse_mixed(classifier.base)
    base = load_base(classifier)
    plain = merged_copy(classifier)
    heads = matched_heads(plain, base)
    tables = {
        name: np.full((len(sample.sites), max_num_heads(sample.sites)), np.nan)
        for name in (
            "output_value", "query_key", "output_value_rank", "query_key_rank",
            "effect", "effect_errors", "loss_change", "loss_change_errors",
        )
    }  # fmt: skip
    for head in heads:
        cell = head.trained.layer, head.number
        before, after = _factors(base, head, 1), _factors(plain, head, 0)
        for name, old, new in zip(("output_value", "query_key"), before, after, strict=True):
            change = product_change(old, new)
            tables[name][cell] = np.nan if change.relative is None else change.relative
            tables[f"{name}_rank"][cell] = change.effective_rank
    found = _effects(replace(sample, classifier=replace(classifier, model=plain)), base, heads) if effects else ()
    for head, (moved, losses) in zip(heads if effects else (), found, strict=True):
        cell = head.trained.layer, head.number
        for name, values in (("effect", moved), ("loss_change", losses)):
            tables[name][cell] = values.mean()
            if len(values) > 1:
                tables[f"{name}_errors"][cell] = values.std(ddof=1) / np.sqrt(len(values))
    written = {name: [[None if np.isnan(v) else float(v) for v in row] for row in tables[name]] for name in tables}
    return HeadChanges(
        sample.split_name, len(sample) if effects else 0, EFFECT_MEASURES[classifier.problem_type], **written
    )


def load_base(classifier: Classifier) -> PreTrainedModel:
    """Return the checkpoint that training started from; only its attention projections mean anything.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    source = classifier.source
    if source is None:
        raise ModelError(
            "this classifier was built from scratch (model.model_type): there is no base checkpoint to compare with; "
            "fine-tune a pretrained one (model.model_name_or_path)"
        )
    load_config(source)  # refuses a config.json that would run code or fill memory
    base: PreTrainedModel
    with model_load_errors(source), torch.random.fork_rng(devices=[]):  # a head that is not used is drawn at random
        base = AutoModelForSequenceClassification.from_pretrained(
            source.location(), ignore_mismatched_sizes=True, **source.loading_options()
        )
    base.eval()
    return base


def merged_copy(classifier: Classifier) -> PreTrainedModel:
    """Return a copy of the model with its adapters merged into plain weights.

    Raises:
        ModelError: peft cannot merge them.
    """
    model: Any = copy.deepcopy(classifier.model)
    if isinstance(model, peft.PeftModel):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(f"peft cannot merge these adapters, so their heads cannot be compared: {error}") from error
    plain: PreTrainedModel = model
    return plain


@contextmanager
def without_own_change(model: PreTrainedModel, base: PreTrainedModel, head: MatchedHead) -> Iterator[None]:
    """Put one head's rows of query, key and value and its columns of the output projection back to the base's.

    All else stays as trained: the output projection's bias, which is no head's own, and DeBERTa's projections of
    positions. The model is restored to the bit after.
    """
    kept = [(own, own.detach().clone()) for own, _ in _own_parts(model, base, head)]
    try:
        for own, before in _own_parts(model, base, head):
            own.copy_(before)
        yield
    finally:
        for own, trained in kept:
            own.copy_(trained)


def _effects(sample: GatedRows, base: PreTrainedModel, heads: Sequence[MatchedHead]) -> Iterator[tuple[Array, Array]]:
    """Yield for each head how far each row's prediction moves without its change, and the rise of the loss, (N,)."""
    classifier, labels = sample.classifier, torch.as_tensor(sample.labels)

    def measure() -> tuple[Tensor, Tensor]:
        logits = gated_logits(sample, sample.gates()).double()
        return logits, per_example_loss(logits, labels, classifier.problem_type).double()

    trained, losses = measure()
    known: dict[tuple[object, ...], tuple[Array, Array]] = {}
    for head in heads:
        key = (*head.trained.paths(ROLES), head.number)
        if key not in known:
            unchanged = all(own.equal(before) for own, before in _own_parts(classifier.base, base, head))
            with without_own_change(classifier.base, base, head):
                other, raised = (trained, losses) if unchanged else measure()
            moved = divergence(trained, other, classifier.problem_type)
            known[key] = moved.numpy(), (raised - losses).numpy()
        yield known[key]


def _refuse_mixed(model: PreTrainedModel) -> None:
    """Raise ModelError unless each head is a slice of the query, key, value and output projections."""
    site = attention_sites(model)[0]
    query, output = (model.get_submodule(path).weight for path in (site.query, site.output))
    assert isinstance(query, Tensor)
    assert isinstance(output, Tensor)
    why = family_of(model.config).not_prunable
    if why and (query.dim() != 2 or len(query) != output.shape[1]):
        raise ModelError(
            f"the heads of a '{model.config.model_type}' model cannot be compared with its base's one by one: {why}; "
            "their importance can be measured all the same"
        )


def matched_heads(plain: PreTrainedModel, base: PreTrainedModel) -> list[MatchedHead]:
    """Return every head of the trained model with its counterpart in the base, from which fewer may have been cut."""
    heads = []
    for site, before in zip(attention_sites(plain), attention_sites(base), strict=True):
        output: Any = plain.get_submodule(site.output)
        width = int(output.weight.shape[1]) // site.num_heads
        there = _whole_numbers(base, before)
        for number, whole in enumerate(_whole_numbers(plain, site)):
            if whole not in there:
                raise ModelError(
                    f"head {whole} of layer {site.layer} is not in the base checkpoint: it is another model's than "
                    "the classifier's, or was pruned since; put the checkpoint back that training started from"
                )
            heads.append(MatchedHead(site, before, number, there.index(whole), width))
    return heads


def _whole_numbers(model: PreTrainedModel, site: AttentionSite) -> list[int]:
    """Return the numbers that a layer's heads had before any were cut out."""
    lost = pruned_heads(model.config).get(site.layer, [])
    return [number for number in range(site.num_heads + len(lost)) if number not in lost]


def _factors(model: PreTrainedModel, head: MatchedHead, which: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return (W_V, W_O) and (W_Q, W_K^T) of a head, each (E, D) and (D, E); `which`: 0 trained, 1 base."""
    weights = {}
    for role in ROLES:
        path = getattr(head.base if which else head.trained, role)
        rows = head.slices(role)[which]
        weight: Any = model.get_submodule(path).weight
        taken = weight.detach()[:, rows].T if role == "output" else weight.detach()[rows]
        weights[role] = taken.double().cpu().numpy()  # (D, E)
    return (weights["value"].T, weights["output"]), (weights["query"].T, weights["key"])


def _own_parts(model: PreTrainedModel, base: PreTrainedModel, head: MatchedHead) -> list[tuple[Tensor, Tensor]]:
    """Return views of all that is the head's own in the trained model, each with the base's on the same device."""
    parts = []
    for role in ROLES:
        (here, there), axis = head.slices(role), 1 if role == "output" else 0
        paths = getattr(head.trained, role), getattr(head.base, role)
        own, before = (m.get_submodule(path) for m, path in zip((model, base), paths, strict=True))
        tensors: list[Any] = [(own.weight, before.weight, here[0], there[0])]
        if role != "output" and own.bias is not None:
            tensors.append((own.bias, before.bias, here[0], there[0]))
        name = family_of(model.config).separate_biases.get(role)
        around, around_before = (
            m.get_submodule(path.rpartition(".")[0]) for m, path in zip((model, base), paths, strict=True)
        )
        if name is not None:
            numbers = head.number * head.width, head.base_number * head.width
            tensors.append((getattr(around, name), getattr(around_before, name), *numbers))
        for tensor, other, start, start_before in tensors:
            view = tensor.detach().narrow(axis, start, head.width)
            parts.append((view, other.detach().narrow(axis, start_before, head.width).to(view)))
    return parts
