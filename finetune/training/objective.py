"""The training objective: the loss of each example that training minimizes.

It is the loss of the problem type (models/losses.py) with the class weights and the label smoothing of the recipe, and
the terms that the recipe adds. Evaluation always uses the plain loss, so that runs can be compared.

    B batch, C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.models.losses import divergence, per_example_loss
from finetune.training.training_model import TrainingModel


@dataclass(frozen=True)
class Objective:
    """The loss of training, per example.

    Attributes:
        problem_type: single_label_classification, multi_label_classification or regression.
        class_weights: (C,); None: all 1.
        label_smoothing: share of the target that is distributed evenly over all classes.
        rdrop_alpha: weight of the R-Drop term; 0: none.
    """

    problem_type: str
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    rdrop_alpha: float = 0.0

    def losses(self, model: TrainingModel, batch: LocalBatch) -> Tensor:
        """Return the loss of each example of a batch, (B,), in float32.

        With R-Drop (Liang et al. 2021, equations 3 and 4) every example passes through the model twice, in one forward
        pass over the batch and its copy, with different dropout masks. The loss is the mean of both losses plus
        `rdrop_alpha` times the mean of both KL divergences between the two predictions. (The equations have the sum of
        both losses; the authors' code has the mean, and so do their values of alpha.)
        """
        copies = 2 if self.rdrop_alpha else 1
        labels = _repeated(batch.labels, copies)
        logits = model.logits({name: _repeated(tensor, copies) for name, tensor in batch.inputs.items()})
        losses = per_example_loss(logits, labels, self.problem_type, self.class_weights, self.label_smoothing)
        if not self.rdrop_alpha:
            return losses
        first, second = logits.float().chunk(2)
        both = divergence(first, second, self.problem_type) + divergence(second, first, self.problem_type)
        return torch.stack(losses.chunk(2)).mean(0) + self.rdrop_alpha * both / 2


def _repeated(tensor: Tensor, copies: int) -> Tensor:
    """Return the tensor `copies` times along the first dimension."""
    return tensor if copies == 1 else torch.cat([tensor] * copies)
