"""How training changed each head, compared with the base checkpoint, for adapters and for full fine-tuning.

Adapters are merged into a copy of the classifier, and its attention projections are compared with those of the base
checkpoint, which is loaded again.

The change of a head's rows of one weight is not a good measure: for any orthogonal R, W_V R and R^T W_O define the
same head as W_V and W_O, so training that only rotates the value space of a head would appear to change both weights
although no output changes. Two products determine what a head does and do not depend on R:

    W_V W_O      what the head writes for what it reads,
    W_Q W_K^T    which token attends to which.

The relative change of a head is ||after - before||_F / ||before||_F of each product. The products do not contain the
biases; the effect does. With DeBERTa's projected positions or with rotary positions, W_Q W_K^T gives only one part of
an attention score: that of the content, or that at distance 0.

    N rows, D head width, E hidden size
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.heads.product_change import Array, product_change
from finetune.models.architectures import family_of
from finetune.models.attention_sites import ROLES, AttentionSite, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import max_num_heads
from finetune.models.lora import merge_adapters
from finetune.models.losses import divergence, per_example_loss
from finetune.models.pretrained import load_config, model_load_errors
from finetune.models.pruned_config import pruned_heads
from finetune.models.pruned_model import classifier_class
from finetune.progress import stage
from finetune.runs.head_results import HeadChanges

EFFECT_MEASURES = {
    "single_label_classification": "KL divergence (nats)",
    "multi_label_classification": "mean KL divergence of a label (nats)",
    "regression": "squared difference of values",
}


@dataclass(frozen=True)
class MatchedHead:
    """One head in the trained model and in the base, which may have more heads.

    Attributes:
        number, base_number: the index of the head in its layer of the trained model, and of the base.
        width: the head width D.
    """

    trained: AttentionSite
    base: AttentionSite
    number: int
    base_number: int
    width: int

    def slices(self, role: str) -> tuple[list[int], list[int]]:
        """Return the head's rows of a projection (output: columns), in the trained model and in the base."""
        return (
            self.trained.slices(role, [self.number], self.width),
            self.base.slices(role, [self.base_number], self.width),
        )


def head_changes(sample: GatedRows, *, effects: bool = True) -> HeadChanges:
    """Return the relative change of each head's products, and the effect of undoing the change of one head at a time.

    The effects take one forward pass over the rows per changed head, so limit the number of rows. A projection that
    several layers share (ALBERT) is reset for all of them, and each layer reports the same effect; so do heads that
    share a key and a value. The classifier is not changed. Predictions are those of a merged copy; below float32,
    merging rounds the weights once more.

    Args:
        effects: whether to measure effects; if not, no row is read.

    Raises:
        ModelError: the classifier was built from scratch, its heads are not slices of its projections, the base
            checkpoint cannot be loaded or lacks a head, or peft cannot merge the adapters.
    """
    classifier = sample.classifier
    _check_heads_are_slices(classifier.base)
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
        before, after = _factors(base, head, in_base=True), _factors(plain, head, in_base=False)
        for name, old, new in zip(("output_value", "query_key"), before, after, strict=True):
            change = product_change(old, new)
            tables[name][cell] = np.nan if change.relative is None else change.relative
            tables[f"{name}_rank"][cell] = change.effective_rank
    results = _effects(replace(sample, classifier=replace(classifier, model=plain)), base, heads) if effects else ()
    for head, (divergences, losses) in zip(heads if effects else (), results, strict=True):
        cell = head.trained.layer, head.number
        for name, values in (("effect", divergences), ("loss_change", losses)):
            tables[name][cell] = values.mean()
            if len(values) > 1:
                tables[f"{name}_errors"][cell] = values.std(ddof=1) / np.sqrt(len(values))
    lists = {name: [[None if np.isnan(v) else float(v) for v in row] for row in tables[name]] for name in tables}
    return HeadChanges(
        sample.split_name, len(sample) if effects else 0, EFFECT_MEASURES[classifier.problem_type], **lists
    )


def load_base(classifier: Classifier) -> PreTrainedModel:
    """Return the base checkpoint that training started from; only its attention projections are meaningful.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    source = classifier.source
    if source is None:
        raise ModelError(
            "this classifier was built from scratch (model.model_type): there is no base checkpoint to compare with; "
            "fine-tune a pretrained one (model.model_name_or_path)"
        )
    config = load_config(source)  # refuses a config.json that would run code or fill memory
    base: PreTrainedModel
    with model_load_errors(source), torch.random.fork_rng(devices=[]):  # the unused classification head is random
        base = classifier_class(config).from_pretrained(
            source.location(), config=config, ignore_mismatched_sizes=True, **source.loading_options()
        )
    base.eval()
    return base


def merged_copy(classifier: Classifier) -> PreTrainedModel:
    """Return a copy of the model with its adapters merged into plain weights.

    Raises:
        ModelError: peft cannot merge them.
    """
    return merge_adapters(copy.deepcopy(classifier.model))


@contextmanager
def reset_head(model: PreTrainedModel, base: PreTrainedModel, head: MatchedHead) -> Iterator[None]:
    """Give one head of `model` the weights of the base inside the block.

    These are its rows of query, key and value, and its columns of the output projection. Everything else stays as
    trained, such as the bias of the output projection, which belongs to no head, and DeBERTa's position projections.
    The weights are restored bit for bit afterwards.
    """
    saved = [(part, part.detach().clone()) for part, _ in _head_parts(model, base, head)]
    try:
        for part, before in _head_parts(model, base, head):
            part.copy_(before)
        yield
    finally:
        for part, trained in saved:
            part.copy_(trained)


def _effects(sample: GatedRows, base: PreTrainedModel, heads: Sequence[MatchedHead]) -> Iterator[tuple[Array, Array]]:
    """Yield for each head how much the predictions and the losses change when its change is undone, (N,) each."""
    classifier, labels = sample.classifier, torch.as_tensor(sample.labels)

    def logits_and_losses() -> tuple[Tensor, Tensor]:
        logits = gated_logits(sample, sample.gates()).double()
        return logits, per_example_loss(logits, labels, classifier.problem_type).double()

    trained, losses = logits_and_losses()
    results: dict[tuple[object, ...], tuple[Array, Array]] = {}  # one per head of shared layers
    with stage("undoing the change of each head", total=len(heads)) as progress:
        for head in heads:
            key = (*head.trained.paths(ROLES), head.number)
            if key not in results:
                unchanged = all(part.equal(before) for part, before in _head_parts(classifier.base, base, head))
                with reset_head(classifier.base, base, head):
                    other, other_losses = (trained, losses) if unchanged else logits_and_losses()
                divergences = divergence(trained, other, classifier.problem_type)
                results[key] = divergences.numpy(), (other_losses - losses).numpy()
            progress.advance()
            yield results[key]


def _check_heads_are_slices(model: PreTrainedModel) -> None:
    """Raise ModelError unless each head is a slice of the query, key, value and output projections."""
    site = attention_sites(model)[0]
    query, output = (model.get_submodule(path).weight for path in (site.query, site.output))
    assert isinstance(query, Tensor)
    assert isinstance(output, Tensor)
    why = family_of(model.config).not_prunable
    if why and (query.dim() != 2 or len(query) != output.shape[1]):
        raise ModelError(
            f"the heads of a '{model.config.model_type}' model cannot be compared one by one with those of the "
            f"base: {why}; their importance can still be measured"
        )


def matched_heads(plain: PreTrainedModel, base: PreTrainedModel) -> list[MatchedHead]:
    """Return every head of the trained model with the same head of the base, which may have more heads."""
    heads = []
    for site, before in zip(attention_sites(plain), attention_sites(base), strict=True):
        output: Any = plain.get_submodule(site.output)
        width = int(output.weight.shape[1]) // max(1, site.num_heads)  # no head is left in an empty layer
        base_numbers = _original_numbers(base, before)
        for number, original in enumerate(_original_numbers(plain, site)):
            if original not in base_numbers:
                raise ModelError(
                    f"head {original} of layer {site.layer} is not in the base checkpoint: it belongs to another "
                    "model, or was pruned after training; restore the checkpoint that training started from"
                )
            heads.append(MatchedHead(site, before, number, base_numbers.index(original), width))
    return heads


def _original_numbers(model: PreTrainedModel, site: AttentionSite) -> list[int]:
    """Return the numbers that the heads of a layer had before pruning."""
    pruned = pruned_heads(model.config).get(site.layer, [])
    return [number for number in range(site.num_heads + len(pruned)) if number not in pruned]


def _factors(
    model: PreTrainedModel, head: MatchedHead, *, in_base: bool
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return (W_V, W_O) and (W_Q, W_K^T) of a head, each (E, D) and (D, E).

    Args:
        in_base: whether `model` is the base; else it is the trained model.
    """
    weights = {}
    for role in ROLES:
        path = getattr(head.base if in_base else head.trained, role)
        trained_rows, base_rows = head.slices(role)
        rows = base_rows if in_base else trained_rows
        weight: Any = model.get_submodule(path).weight
        part = weight.detach()[:, rows].T if role == "output" else weight.detach()[rows]
        weights[role] = part.double().cpu().numpy()  # (D, E)
    return (weights["value"].T, weights["output"]), (weights["query"].T, weights["key"])


def _head_parts(model: PreTrainedModel, base: PreTrainedModel, head: MatchedHead) -> list[tuple[Tensor, Tensor]]:
    """Return views of all weights of a head in the trained model, each with the base weight on the same device."""
    parts = []
    for role in ROLES:
        (rows, base_rows), axis = head.slices(role), 1 if role == "output" else 0
        paths = getattr(head.trained, role), getattr(head.base, role)
        projection, before = (m.get_submodule(path) for m, path in zip((model, base), paths, strict=True))
        tensors: list[Any] = [(projection.weight, before.weight, rows[0], base_rows[0])]
        if role != "output" and projection.bias is not None:
            tensors.append((projection.bias, before.bias, rows[0], base_rows[0]))
        name = family_of(model.config).separate_biases.get(role)
        parent, base_parent = (
            m.get_submodule(path.rpartition(".")[0]) for m, path in zip((model, base), paths, strict=True)
        )
        if name is not None:
            numbers = head.number * head.width, head.base_number * head.width
            tensors.append((getattr(parent, name), getattr(base_parent, name), *numbers))
        for tensor, other, start, start_before in tensors:
            view = tensor.detach().narrow(axis, start, head.width)
            parts.append((view, other.detach().narrow(axis, start_before, head.width).to(view)))
    return parts
