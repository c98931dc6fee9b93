"""The recipe key `training.padding_free`: whether training computes only real tokens (models/padding_free.py).

B rows of a batch on this process
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.batching import LocalBatch
from finetune.data.windows import WINDOW_COUNTS
from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.padding_free import ROW_LENGTHS, PaddingFree
from finetune.models.padding_free_trial import try_padding_free
from finetune.recipe.training_section import TrainingSection
from finetune.training.fsdp import is_sharded


def choose_padding_free(
    classifier: Classifier, training: TrainingSection, accelerator: Accelerator
) -> tuple[PaddingFree | None, list[str]]:
    """Return how training computes only real tokens, None if it does not, and lines for the user about it.

    `auto` turns it on where it pays and the model allows it: on a GPU, and on a CPU if rows of different lengths are in
    a batch. The model must be on the device of training.

    Raises:
        ModelError: the recipe sets it to true, and the model does not allow it.
    """
    on_cpu = accelerator.device.type == "cpu"
    grouped = on_cpu and training.train_sampling_strategy == "group_by_length" and not training.contrastive_weight
    is_auto = training.padding_free == "auto"
    if training.padding_free is False or (is_auto and (grouped or is_sharded(accelerator))):
        return None, []
    padding_free, reason = try_padding_free(
        classifier.base,
        accelerator.device,
        first=training.freeze_layers if training.cache_frozen_layers else 0,
        left=classifier.tokenizer.padding_side == "left",
    )
    if padding_free is not None and padding_free.form.padded_attention and training.torch_compile:
        padding_free, reason = None, "its attention modules need padded states, which compiled layers cannot give them"
    if padding_free is not None:
        return padding_free, []
    of_model = f"this '{classifier.base.config.model_type}' model: {reason}"
    if is_auto:
        return None, [f"Batches are padded (training.padding_free: auto) for {of_model}."]
    raise ModelError(f"training.padding_free is true, but it cannot be used with {of_model}; remove the key")


def with_row_lengths(batch: LocalBatch, lengths: np.ndarray, accelerator: Accelerator) -> LocalBatch:
    """Return a batch with the number of tokens of each row among its inputs, (B,), on the CPU.

    A GPU then need not finish its work for the CPU to know which tokens are real. Batches on a CPU, and batches with
    several windows per row, are returned unchanged.

    Args:
        lengths: number of tokens of the rows of all processes.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    if accelerator.device.type == "cpu" or WINDOW_COUNTS in batch.inputs:
        return batch
    own = lengths[process::processes] if len(lengths) > process else lengths[:1]
    return replace(batch, inputs={**batch.inputs, ROW_LENGTHS: torch.from_numpy(own.astype(np.int64))})
