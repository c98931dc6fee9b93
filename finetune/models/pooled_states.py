"""The pooled states of an encoder: one vector per row, without the classification head.

B batch, S tokens, E hidden size, N rows
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.batching import LocalBatch, load_batches, map_parts
from finetune.data.cpu_copies import Block, CpuCopies
from finetune.data.sampler import plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.data.windows import WINDOW_COUNTS, pool_windows
from finetune.distributed import gather_results
from finetune.errors import ModelError
from finetune.models.architectures import encoder_layers
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import scoring_kernels
from finetune.models.pooled_classifier import pool
from finetune.progress import stage

Pooling = Literal["mean", "cls"]


@torch.no_grad()
def pooled_states(
    classifier: Classifier,
    split: EncodedSplit,
    *,
    pooling: Pooling = "mean",
    batch_size: int,
    accelerator: Accelerator,
) -> np.ndarray:
    """Return one vector per row from the encoder's last layer, (N, E) in float32, in the order of the rows.

    If a row has several windows, its vector is their mean.

    The encoder runs in evaluation mode, with the weights and adapters that it has now. The batches do not depend on the
    number of processes, so the results are bit-identical for any number.

    Args:
        pooling: `mean` over the tokens that are not padding, or `cls`: the first token that is not padding.

    Raises:
        ModelError: the encoder does not return one state per token.
    """
    model, training = classifier.model, classifier.model.training
    device = next(model.parameters()).device
    model.to(accelerator.device).eval()
    batches = plan_scoring(split.lengths, batch_size)[accelerator.process_index :: accelerator.num_processes]

    def pool_local() -> list[Block]:
        """Return rows and pooled states of all batches of this process."""
        results = CpuCopies()
        max_rows: int | None = None
        loaded = load_batches(split, batches, classifier.tokenizer, device=accelerator.device)
        with (
            scoring_kernels(model),
            accelerator.autocast(),
            _last_states(classifier) as read_states,
            stage(f"encoding {split.source}", total=len(batches)) as running,
        ):

            def pool(part: LocalBatch) -> Tensor:
                classifier.base(**part.inputs)
                states = pool_tokens(read_states(), _token_mask(part, classifier), pooling)
                return pool_windows(states, part.inputs.get(WINDOW_COUNTS), "mean")

            for rows, batch in zip(batches, loaded, strict=True):
                parts, max_rows = map_parts(pool, batch, max_rows, "encoding")
                results.add(rows, torch.cat(parts))
                running.advance()
        return results.blocks()

    try:
        parts = [part for results in gather_results(accelerator, pool_local) for part in results]
    finally:
        model.train(training)
        model.to(device)  # sharded training (FSDP) starts from weights where they were
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    assert len(order) == len(split), f"encoded {len(order)} of {len(split)} rows"
    states: np.ndarray = torch.cat([states for _, (states,) in parts]).numpy()[order]
    return states


def pool_tokens(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one float32 vector per row, (B, E).

    Args:
        states: the states of the tokens, (B, S, E).
        mask: 1 for a token, 0 for padding, (B, S).
    """
    states = states.float()
    if pooling == "cls":
        return states[torch.arange(len(states), device=states.device), mask.long().argmax(dim=1)]
    return pool(states, mask, pooling)


def _token_mask(batch: LocalBatch, classifier: Classifier) -> Tensor:
    """Return 1 for a token and 0 for padding, (B, S)."""
    mask = batch.inputs.get("attention_mask")
    return batch.inputs["input_ids"].ne(classifier.tokenizer.pad_token_id) if mask is None else mask


@contextmanager
def _last_states(classifier: Classifier) -> Iterator[Any]:
    """Yield a function that returns the encoder's output of the latest forward pass, (B, S, E).

    A classifier without a separate encoder module is read after its last layer.
    """
    base = classifier.base
    encoder = base.base_model
    module = encoder_layers(base)[-1] if encoder is base else encoder
    latest: list[Any] = []

    def record(_: Any, __: Any, output: Any) -> None:
        latest[:] = [output if isinstance(output, Tensor) else output[0]]

    def read() -> Tensor:
        states = latest.pop() if latest else None
        if not isinstance(states, Tensor) or states.dim() != 3:
            raise ModelError(f"the encoder of a '{base.config.model_type}' model does not return one state per token")
        return states

    handle = module.register_forward_hook(record)
    try:
        yield read
    finally:
        handle.remove()
