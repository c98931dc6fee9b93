"""Distillation: a student learns the predictions of a teacher on the training rows (Hinton et al. 2015).

B batch, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.activation_store import FROZEN_STATES
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import scoring_kernels
from finetune.models.losses import divergence
from finetune.models.padding_free import ROW_LENGTHS
from finetune.models.speedups import sped_up

TEMPERATURE = 2.0
LABEL_WEIGHT = 0.0


@dataclass(frozen=True)
class Distillation:
    """The loss of a student: its divergence from the teacher, mixed with the loss of the labels.

    Attributes:
        teacher_logits: from the inputs of a batch to the teacher's logits, (B, C), in float32.
        temperature: both logits are divided by it; in regression it has no effect.
        label_weight: weight of the loss of the labels, 0 to 1.
    """

    teacher_logits: Callable[[Mapping[str, Tensor]], Tensor]
    temperature: float = TEMPERATURE
    label_weight: float = LABEL_WEIGHT

    def losses(self, inputs: Mapping[str, Tensor], logits: Tensor, label_losses: Tensor, problem_type: str) -> Tensor:
        """Return the loss of each example, (B,).

        The divergence is multiplied by the temperature squared, so that its gradient has the same size at every
        temperature.

        Args:
            inputs: of the batch.
            logits: of the student, (B, C).
            label_losses: loss of each example by its label, (B,).
        """
        teacher = self.teacher_logits(inputs) / self.temperature
        distance = divergence(teacher, logits.float() / self.temperature, problem_type) * self.temperature**2
        return self.label_weight * label_losses + (1 - self.label_weight) * distance


@contextmanager
def distillation_from(teacher: Classifier, accelerator: Accelerator) -> Iterator[Distillation]:
    """Yield the distillation from a classifier, which is in evaluation mode and frozen inside the block."""
    model, training = teacher.model.to(accelerator.device), teacher.model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def teacher_logits(inputs: Mapping[str, Tensor]) -> Tensor:
        texts = {name: tensor for name, tensor in inputs.items() if name not in (FROZEN_STATES, ROW_LENGTHS)}
        with scoring_kernels(model), accelerator.autocast():
            logits: Tensor = model(**texts).logits
        return logits.float()

    try:
        model.eval().requires_grad_(False)
        with sped_up(teacher, accelerator):
            yield Distillation(teacher_logits)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)
