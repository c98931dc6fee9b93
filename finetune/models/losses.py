"""Losses, probabilities and predictions per problem type.

B batch, C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossOptions:
    """What the loss of training has in addition to the plain loss, which evaluation uses.

    Attributes:
        class_weights: weight of each class for `single_label_classification`, (C,); None: all 1.
        pos_weight: weight of the rows that have a label for `multi_label_classification`, (C,); None: all 1.
        label_smoothing: share of the target that is distributed evenly over all classes.
        focal_gamma: exponent of the focal loss; 0: cross-entropy.
    """

    class_weights: Tensor | None = None
    pos_weight: Tensor | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0


PLAIN = LossOptions()


def per_example_loss(logits: Tensor, labels: Tensor, problem_type: str, options: LossOptions = PLAIN) -> Tensor:
    """Return the loss per example, (B,), in float32.

    - `single_label_classification` (labels: ids (B,)): cross-entropy, multiplied by the weight of the example's label
      if there are `class_weights`. With `label_smoothing` e the target is 1 - e for the label plus e / C for every
      class, each weighted by its class weight (Szegedy et al. 2016, section 7; torch's `cross_entropy`).
    - `multi_label_classification` (labels: 0 or 1, (B, C)): binary cross-entropy, averaged over the labels; with
      `pos_weight` its term for a label that the row has is multiplied by the weight of the label. The steps of AdamW
      do not depend on the scale of the loss: the sum over 62 labels was no better than the mean (micro F1 0.56 and 0.58
      with 300 rows of NLU++).
    - `regression` (labels: values (B,)): squared error.

    With `focal_gamma` g the cross-entropy (of each label) is multiplied by (1 - p)^g, where p is the probability of the
    right answer (Lin et al. 2017, equations 4 and 5; their alpha is the class weight). Like the cross-entropy it is
    averaged over the examples; the authors divide by the number of objects, which a text does not have.
    """
    logits, gamma = logits.float(), options.focal_gamma
    if problem_type == "single_label_classification":
        losses = F.cross_entropy(
            logits, labels, options.class_weights, reduction="none", label_smoothing=options.label_smoothing
        )
        return losses * (gamma * _log_probability_of_others(logits, labels)).exp() if gamma else losses
    if problem_type == "multi_label_classification":
        targets = labels.float()
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=options.pos_weight)
        if gamma:
            losses = losses * (gamma * F.logsigmoid((1 - 2 * targets) * logits)).exp()
        return losses.mean(-1)
    return (logits.squeeze(-1) - labels.float()) ** 2


def _log_probability_of_others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(1 - p) for the probability p of each example's class, (B,); its gradient is finite also for p = 1."""
    is_label = F.one_hot(labels, logits.shape[-1]).bool()
    return logits.log_softmax(-1).masked_fill(is_label, -torch.inf).logsumexp(-1)


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


def balanced_class_weights(counts: Tensor) -> Tensor:
    """Return class weights (C,), inversely proportional to the label counts (C,), with mean 1 over the examples."""
    weights: Tensor = counts.sum() / (counts.clamp(min=1) * (counts > 0).sum())
    return weights.to(torch.float32)


def balanced_pos_weight(counts: Tensor, rows: int) -> Tensor:
    """Return rows without each label divided by rows with it, (C,), from the label counts (C,); 1 if no row has it."""
    weights = torch.where(counts > 0, (rows - counts) / counts.clamp(min=1), 1.0)
    return weights.clamp(min=1 / max(rows, 1)).to(torch.float32)  # a label that every row has keeps a positive weight
