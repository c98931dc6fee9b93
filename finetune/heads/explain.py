"""Why the classifier scores a text as it does: which heads the score needs, which tokens, and what heads attend to.

Each function takes a tokenized batch. The score is `target_scores`, by default of the predicted label. All functions
set hooks on the model while they run: use one thread at a time.

    B batch, S tokens, L layers, H heads (of the layer with the most heads), C classes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.windows import num_rows, select_rows
from finetune.errors import ModelError
from finetune.heads.attention_maps import attention_maps, eager_attention
from finetune.heads.explain_scores import (
    SCORE_NAMES,
    Inputs,
    in_chunks,
    predicted_targets,
    target_scores,
    token_mask,
    tokenized,
)
from finetune.heads.explain_token_texts import Token, readable_tokens
from finetune.heads.explain_tokens import TokenAttributions, baseline_token, token_attributions
from finetune.heads.fast_ablation import PrefixReuse, logits_without, rows_per_batch
from finetune.heads.gated_forward import attention_kernel, frozen
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_gates, head_mask, max_num_heads

__all__ = [
    "SCORE_NAMES",
    "Head",
    "Inputs",
    "Token",
    "TokenAttributions",
    "attention_of",
    "baseline_token",
    "first_order_head_effects",
    "first_order_pass",
    "head_effects",
    "predicted_targets",
    "readable_tokens",
    "target_scores",
    "token_attributions",
    "tokenized",
]

Head = tuple[int, int]  # layer and head, both counted from 0


def head_effects(
    classifier: Classifier, inputs: Inputs, targets: Tensor | None = None, *, reuse: PrefixReuse | None = None
) -> np.ndarray:
    """Return each row's score with all heads minus its score without the head, (B, L, H); NaN where there is no head.

    A head is turned off by a gate of 0, as in `heads_off`; the result is exact. Many (row, head) pairs share a batch,
    each with its own gates.

    Args:
        inputs: a tokenized batch, (B, S) each, as the tokenizer or `tokenized` returns it.
        targets: the label of each row to explain, (B,); None: the predicted one (`predicted_targets`).
        reuse: compute what the passes have in common only once; about twice as fast, where it fits the model
            (`ablation.fitting_savings`).
    """
    base, sites = classifier.base, attention_sites(classifier.base)
    inputs = {name: tensor.to(base.device) for name, tensor in inputs.items()}
    with torch.no_grad(), frozen(base):
        if reuse is None:
            full = base(**inputs).logits
            without = _logits_without(classifier, inputs)
        else:
            full, without = _logits_with_reuse(reuse, inputs)
    targets = predicted_targets(full) if targets is None else targets.to(base.device)
    scores = target_scores(full, targets, classifier.problem_type)  # (B,)
    scores_without = target_scores(without, targets[:, None, None].expand(without.shape[:3]), classifier.problem_type)
    effects = (scores[:, None, None] - scores_without).cpu().numpy()
    effects[:, ~head_mask(sites)] = np.nan
    return np.asarray(effects)


def first_order_head_effects(classifier: Classifier, inputs: Inputs, targets: Tensor | None = None) -> np.ndarray:
    """Return the first-order estimate of `head_effects`, (B, L, H), from one forward and one backward pass.

    It is the gradient of the score with respect to the head's gate at 1, which is the effect of the head if the score
    is linear in the gate from 1 to 0.
    """
    return first_order_pass(classifier, inputs, targets)[0]


def first_order_pass(
    classifier: Classifier, inputs: Inputs, targets: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return `first_order_head_effects`, (B, L, H), and the logits (B, C) of the same pass."""
    base, sites = classifier.base, attention_sites(classifier.base)
    inputs = {name: tensor.to(base.device) for name, tensor in inputs.items()}
    rows = num_rows(inputs)
    gates = torch.ones(rows, len(sites), max_num_heads(sites), device=base.device, requires_grad=True)
    with torch.enable_grad(), frozen(base), attention_kernel(base.device):
        with head_gates(base, sites, gates):
            logits = base(**inputs).logits
        targets = predicted_targets(logits) if targets is None else targets.to(base.device)
        scores = target_scores(logits, targets, classifier.problem_type)
        (gradients,) = torch.autograd.grad(scores.sum(), gates)
    effects = gradients.float().cpu().numpy()
    effects[:, ~head_mask(sites)] = np.nan
    return effects, logits.detach().float().cpu().numpy()


def attention_of(
    classifier: Classifier, inputs: Inputs, heads: Sequence[Head] | None = None
) -> list[dict[Head, np.ndarray]]:
    """Return the attention maps of each row by head: (S, S), without padding; each token's weights sum to 1.

    The first index is the token that attends, the second the token that it attends to. The maps are empty if the
    model returns no attention weights of its heads, as that of some families (such as SqueezeBERT).

    Args:
        heads: None: all heads.
    """
    base = classifier.base
    inputs = {name: tensor.to(base.device) for name, tensor in inputs.items()}
    mask = token_mask(inputs)
    try:
        with torch.no_grad(), frozen(base), eager_attention(classifier):
            maps = attention_maps(classifier, inputs)
    except ModelError:
        return [{} for _ in mask]
    chosen = heads or [(layer, head) for layer, weights in enumerate(maps) for head in range(weights.shape[1])]
    by_head = {
        (layer, head): maps[layer][:, head].float().cpu() for layer, head in chosen if head < maps[layer].shape[1]
    }
    masks = mask.cpu()
    return [
        {head: weights[row][masks[row]][:, masks[row]].numpy() for head, weights in by_head.items()}
        for row in range(len(masks))
    ]


def _logits_without(classifier: Classifier, inputs: Inputs) -> Tensor:
    """Return the logits without each head, (B, L, H, C), by one gated row per (row, head) pair; 0 for no head."""
    base, sites = classifier.base, attention_sites(classifier.base)
    layers, heads = np.nonzero(head_mask(sites))  # of every head
    rows, width = num_rows(inputs), max_num_heads(sites)
    logits: list[Tensor] = []

    def append(numbers: Tensor) -> None:
        """Append the logits of these of the (row, head) pairs, which are numbered row by row."""
        pairs = numbers % len(layers)
        chosen, pairs = numbers // len(layers), pairs.cpu()
        gates = torch.ones(len(numbers), len(sites), width, device=base.device)
        gates[torch.arange(len(numbers)), layers[pairs], heads[pairs]] = 0
        with head_gates(base, sites, gates):
            logits.append(base(**select_rows(inputs, chosen)).logits)

    in_chunks(append, rows * len(layers), inputs)
    found = torch.cat(logits)
    without = found.new_zeros(rows, len(sites), width, found.shape[-1])
    without[:, layers, heads] = found.unflatten(0, (rows, len(layers)))
    return without


def _logits_with_reuse(reuse: PrefixReuse, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the logits (B, C), and those without each head (B, L, H, C), by prefix reuse."""
    size = rows_per_batch(reuse.sites, inputs["input_ids"].shape[1])
    width, parts = max_num_heads(reuse.sites), []
    for start in range(0, num_rows(inputs), size):
        full, without = logits_without(reuse, select_rows(inputs, slice(start, start + size)))
        table = torch.stack([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in without], 1)
        parts.append((full, table))
    return torch.cat([full for full, _ in parts]), torch.cat([table for _, table in parts])
