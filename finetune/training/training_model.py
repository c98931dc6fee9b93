"""The model during training: its forward pass, and the current weights.

The trained module may differ from the classifier's model: under FSDP it is a sharded copy, and on a CPU a smaller table
with the embeddings of the training split's tokens is trained instead of the full one. The training loop does not depend
on this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.models.classifier import transformers_model
from finetune.models.gradient_checkpointing import checkpointed_layers
from finetune.models.padding_free import ROW_LENGTHS, PaddingFree
from finetune.models.speedups import training_kernels
from finetune.training.averaging import WeightAverage
from finetune.training.embedding_subset import EmbeddingSubset
from finetune.training.fsdp import full_model, load_shards


@dataclass(frozen=True)
class TrainingModel:
    """The classifier's model as it is trained.

    Attributes:
        full: the classifier's model, which is evaluated and saved.
        module: the module that is trained, prepared by Accelerate: the same model, or under FSDP a sharded copy.
        embeddings: the token embeddings that are trained instead of the full table; None: the full table is trained.
        device: the device of the module.
        compiled: whether its layers are compiled.
        checkpointed: whether its layers are computed again in the backward pass.
        padding_free: how its layers compute only real tokens; None: they compute padded batches.
        average: the moving average of the trained weights; None: there is none.
    """

    full: nn.Module
    module: nn.Module
    embeddings: EmbeddingSubset | None
    device: torch.device
    compiled: bool
    checkpointed: bool = False
    average: WeightAverage | None = None
    padding_free: PaddingFree | None = None

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a training batch, (B, C)."""
        packed, tensors = self.padding_free, dict(inputs)
        lengths = tensors.pop(ROW_LENGTHS, None)
        embeddings = self.embeddings.in_use() if self.embeddings else nullcontext()
        base = transformers_model(self.module)
        layers = checkpointed_layers(base, self.device, packed) if self.checkpointed else nullcontext()
        real_tokens = packed.in_use(lengths) if packed else nullcontext()
        with embeddings, layers, real_tokens, training_kernels(self.device, compiled=self.compiled):
            logits: Tensor = self.module(**tensors).logits
        return logits

    @contextmanager
    def up_to_date(self, weight_decay_factor: float) -> Iterator[nn.Module]:
        """Yield the classifier's model with the current weights; all processes must enter together."""
        if self.embeddings:
            self.embeddings.write_back(weight_decay_factor)
        with full_model(self.full, self.module) as model:
            yield model

    @contextmanager
    def averaged(self, weight_decay_factor: float) -> Iterator[nn.Module]:
        """Yield the classifier's model with the averaged weights, or with the current ones if there is no average."""
        average = self.average
        with average.in_use() if average else nullcontext():
            factor = average.weight_decay_factor if average else weight_decay_factor
            with self.up_to_date(factor) as model:
                yield model

    def load(self, weight_decay_factor: float) -> None:
        """Continue training from the weights of the classifier's model, into which a checkpoint was restored.

        Raises:
            TrainingError: the checkpoint started from other embeddings than this model.
        """
        if self.embeddings:
            self.embeddings.load(weight_decay_factor)
        load_shards(self.full, self.module)
