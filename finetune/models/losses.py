"""Losses, probabilities and predictions per problem type.

B batch, C classes
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def per_example_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss per example, (B,), in float32.

    - `single_label_classification` (labels: ids (B,)): cross-entropy, multiplied by the weight of the example's label
      if there are `class_weights` (C,). With `label_smoothing` e the target is 1 - e for the label plus e / C for every
      class, each weighted by its class weight (Szegedy et al. 2016, section 7; torch's `cross_entropy`).
    - `multi_label_classification` (labels: 0 or 1, (B, C)): binary cross-entropy, averaged over the labels. The steps
      of AdamW do not depend on the scale of the loss: the sum over 62 labels was no better than the mean (micro F1 0.56
      and 0.58 with 300 rows of NLU++).
    - `regression` (labels: values (B,)): squared error.
    """
    logits = logits.float()
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels, class_weights, reduction="none", label_smoothing=label_smoothing)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(-1)
    return (logits.squeeze(-1) - labels.float()) ** 2


def probabilities(logits: Tensor, problem_type: str) -> Tensor:
    """Return probabilities per class (B, C); for regression the predicted values (B, 1)."""
    logits = logits.float()
    if problem_type == "single_label_classification":
        return logits.softmax(-1)
    return logits.sigmoid() if problem_type == "multi_label_classification" else logits


def divergence(first: Tensor, second: Tensor, problem_type: str) -> Tensor:
    """Return the divergence of predictions from the first logits (..., C) to the second, (...).

    It is KL(first || second) in nats for `single_label_classification`; the same per binary label, averaged over the
    labels, for `multi_label_classification`; and the squared difference of the values for `regression`, which is the
    KL divergence of two normal distributions of variance 1/2.
    """
    if problem_type == "regression":
        return (first - second).squeeze(-1) ** 2
    if problem_type == "multi_label_classification":
        first, second = (torch.stack([logits, torch.zeros_like(logits)], dim=-1) for logits in (first, second))
    before, after = (F.log_softmax(logits, dim=-1) for logits in (first, second))
    kl = (before.exp() * (before - after)).sum(-1)
    return kl.mean(-1) if problem_type == "multi_label_classification" else kl


def supervised_contrastive_loss(states: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss per example, (B,), in float32 (Khosla et al. 2020, equation 2).

    The loss of an example is the mean, over the other examples of its class, of the cross-entropy of picking that one
    among all others by the cosine similarity of states, divided by the temperature. It is 0 for an example whose class
    has no other.

    Args:
        states: one state per example, (B, E).
        labels: class ids, (B,).
    """
    normalized = F.normalize(states.float(), dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    # A finite number, because in a batch of one example all similarities would be -inf, and the loss NaN.
    similarity = (normalized @ normalized.T / temperature).masked_fill(itself, torch.finfo(torch.float32).min)
    positive = (labels[:, None] == labels[None]) & ~itself
    losses: Tensor = F.log_softmax(similarity, dim=-1).masked_fill(~positive, 0).sum(-1)
    return -losses / positive.sum(-1).clamp(min=1)


def decisions(logits: Tensor, problem_type: str) -> Tensor:
    """Return predictions: ids (B,), 0 or 1 per label (B, C) with threshold one half, or values (B,)."""
    if problem_type == "single_label_classification":
        return logits.argmax(-1)
    return (logits > 0).long() if problem_type == "multi_label_classification" else logits.float().squeeze(-1)


def balanced_weights(counts: Tensor) -> Tensor:
    """Return class weights (C,), inversely proportional to the label counts (C,), with mean 1 over the examples."""
    weights: Tensor = counts.sum() / (counts.clamp(min=1) * (counts > 0).sum())
    return weights.to(torch.float32)
