"""The training objective: the loss of each example that training minimizes.

It is the loss of the problem type (models/losses.py) with the weights, the label smoothing and the focal factor of the
recipe, and the terms that the recipe adds. Evaluation always uses the plain loss, so that runs can be compared.

    B batch, S tokens, E width of a state, C classes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.data.batching import LocalBatch
from finetune.models.losses import PLAIN, LossOptions, divergence, per_example_loss, supervised_contrastive_loss
from finetune.models.pooled_classifier import pool
from finetune.training.distillation import Distillation
from finetune.training.training_model import TrainingModel


@dataclass(frozen=True)
class Objective:
    """The loss of training, per example.

    Attributes:
        problem_type: single_label_classification, multi_label_classification or regression.
        loss_options: weights, label smoothing and focal factor.
        rdrop_alpha: weight of the R-Drop term; 0: none.
        contrastive_weight: weight of the supervised contrastive term; 0: none.
        contrastive_temperature: its temperature.
        output_layer: the layer that computes the logits, whose input is the state of an example; None without contrast.
        distillation: from a teacher; None: only the labels are learned.
    """

    problem_type: str
    loss_options: LossOptions = PLAIN
    rdrop_alpha: float = 0.0
    contrastive_weight: float = 0.0
    contrastive_temperature: float = 0.1
    output_layer: nn.Module | None = None
    distillation: Distillation | None = None

    def losses(self, model: TrainingModel, batch: LocalBatch) -> Tensor:
        """Return the loss of each example of a batch, (B,), in float32.

        With R-Drop (Liang et al. 2021, equations 3 and 4) every example passes through the model twice, in one forward
        pass over the batch and its copy, with different dropout masks. The loss is the mean of both losses plus
        `rdrop_alpha` times the mean of both KL divergences between the two predictions. (The equations have the sum of
        both losses; the authors' code has the mean, and so do their values of alpha.)

        The contrastive term is added as in Gunel et al. 2021, equation 1, whose lambda is w / (1 + w) for the weight w.
        It compares the examples of this batch (and their copies) by their states: the input of the layer that computes
        the logits, which every family has. Where that layer gets one state per token, the state is their mean.
        """
        copies = 2 if self.rdrop_alpha else 1
        labels = _repeated(batch.labels, copies)
        inputs = {name: _repeated(tensor, copies) for name, tensor in batch.inputs.items()}
        with recorded_inputs(self.output_layer) as states:
            logits = model.logits(inputs)
        losses = per_example_loss(logits, labels, self.problem_type, self.loss_options)
        if self.distillation is not None:
            losses = self.distillation.losses(inputs, logits, losses, self.problem_type)
        if self.contrastive_weight:
            state = mean_state(states[-1], inputs["attention_mask"])
            contrast = supervised_contrastive_loss(state, labels, self.contrastive_temperature)
            losses = losses + self.contrastive_weight * contrast
        if not self.rdrop_alpha:
            return losses
        first, second = logits.float().chunk(2)
        both = divergence(first, second, self.problem_type) + divergence(second, first, self.problem_type)
        return torch.stack(losses.chunk(2)).mean(0) + self.rdrop_alpha * both / 2


@contextmanager
def recorded_inputs(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Inside the context, append each input of the layer to the list that is yielded; None: nothing is recorded."""
    inputs: list[Tensor] = []
    if layer is None:
        yield inputs
        return
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def mean_state(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return states (B, E) unchanged, and the mean of states (B, S, E) over the tokens of the mask (B, S)."""
    return states if states.dim() == 2 else pool(states, attention_mask, "mean")


def _repeated(tensor: Tensor, copies: int) -> Tensor:
    """Return the tensor `copies` times along the first dimension."""
    return tensor if copies == 1 else torch.cat([tensor] * copies)
