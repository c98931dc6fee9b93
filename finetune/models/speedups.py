"""What makes training and scoring faster without changing what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator

from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import CpuKernels
from finetune.models.first_token import first_token_only
from finetune.models.precision import frozen_weights_cast


@contextmanager
def sped_up(classifier: Classifier, accelerator: Accelerator) -> Iterator[None]:
    """Within, the classifier does no work that nothing depends on; it is the same afterwards."""
    with first_token_only(classifier.base), frozen_weights_cast(classifier.model, accelerator):
        yield


def training_kernels(device: torch.device, *, compiled: bool) -> AbstractContextManager[object]:
    """Return the context for a forward pass whose gradient is wanted; compiled layers have kernels of their own."""
    return CpuKernels() if device.type == "cpu" and not compiled else nullcontext()
