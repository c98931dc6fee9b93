"""Which rows meet in which step: a plan, the same on every process, computed from the seed alone.

A plan is made over the global batch, the rows of all processes together, so that the number of
processes changes nothing but who computes what; and step k of epoch e is known without running the
steps before it, so that a resumed run sees the same rows.

    N rows
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from finetune.data.activation_store import FROZEN_STATES
from finetune.data.tokenization import EncodedSplit

if sys.platform == "win32":
    pass
else:
    pass

_BLOCK = 100  # batches sorted by length together: padding stays near 5 %, and the order stays random

Step = list[np.ndarray]
T = TypeVar("T")


def plan_epoch(
    lengths: np.ndarray, *, batch_size: int, accumulation: int, strategy: str, seed: int, epoch: int
) -> list[Step]:
    """Return an epoch's optimiser steps, each a list of micro-batches, each an array of row numbers.

    Every row occurs once. Only one batch of an epoch may be short.

    Args:
        lengths: tokens a row, (N,).
        batch_size: rows of one micro-batch over all processes.
        accumulation: micro-batches in an optimiser step.
        strategy: sequential, random, or group_by_length (random batches of rows of like length).
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.arange(len(lengths)) if strategy == "sequential" else rng.permutation(len(lengths))
    if strategy == "group_by_length":
        block = batch_size * _BLOCK
        blocks = [order[start : start + block] for start in range(0, len(order), block)]
        order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in blocks])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if strategy == "group_by_length":
        batches = [batches[index] for index in rng.permutation(len(batches))]
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def steps_in_epoch(rows: int, *, batch_size: int, accumulation: int) -> int:
    """Return the number of optimiser steps in an epoch of `rows` rows."""
    return -(-rows // (batch_size * accumulation))


def plan_scoring(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row numbers, longest rows first, so that batches hold little padding."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class LocalBatch:
    """One process's part of a micro-batch: model inputs, labels, and the weight of each row (0: a filler)."""

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor


def load_batches(
    split: EncodedSplit,
    batches: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    process: int = 0,
    processes: int = 1,
) -> Iterator[LocalBatch]:
    """Yield this process's rows of each batch, padded to the longest row among them, on `device`.

    A process for which a short batch has no row gets one row with weight 0, since all must take part. Where the split
    has its frozen hidden states, they are among the inputs. For an accelerator a thread pads the next batch while this
    one is computed, and no copy keeps the host waiting.
    """
    padded = _padded_batches(split, batches, tokenizer, process, processes)
    if device.type == "cpu":
        yield from padded  # a thread would take time from the computation
    else:
        yield from (_to_device(batch, device) for batch in one_ahead(padded))


def _padded_batches(
    split: EncodedSplit,
    batches: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    process: int,
    processes: int,
) -> Iterator[LocalBatch]:
    """Yield this process's rows of each batch, padded, on the CPU."""

    def mine() -> Iterator[np.ndarray]:
        """Yield the rows of each batch as they are needed: of millions there is never a list."""
        for batch in batches:
            yield batch[process::processes] if len(batch) > process else batch[:1]

    loader: DataLoader[Any] = DataLoader(
        split.rows,
        batch_sampler=(rows.tolist() for rows in mine()),
        collate_fn=DataCollatorWithPadding(tokenizer),
        generator=torch.Generator().manual_seed(0),  # the loader draws a number: not from the run's own state
    )
    for batch, rows, inputs in zip(batches, mine(), loader, strict=True):
        if split.states is not None:
            inputs[FROZEN_STATES] = split.states.read(rows, inputs["input_ids"].shape[1])
        tensors = dict(inputs)
        labels = tensors.pop("labels")
        yield LocalBatch(tensors, labels, torch.full((len(rows),), float(len(batch) > process)))


def _to_device(batch: LocalBatch, device: torch.device) -> LocalBatch:
    """Return the batch on `device`. On CUDA it is copied from pinned memory, without waiting for the copy.

    Other accelerators promise no order between such a copy and what uses it, so they are waited for.
    """
    pinned = device.type == "cuda"

    def place(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=pinned)

    inputs = {name: place(tensor) for name, tensor in batch.inputs.items()}
    return LocalBatch(inputs, place(batch.labels), place(batch.weights))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; while the caller is at work on one, a thread makes the next."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def split_batch(batch: LocalBatch, max_rows: int | None) -> Iterator[LocalBatch]:
    """Yield a batch in parts of at most `max_rows` rows; None: undivided."""
    if max_rows is None or len(batch.weights) <= max_rows:
        yield batch
        return
    for start in range(0, len(batch.weights), max_rows):
        part = slice(start, start + max_rows)
        inputs = {name: tensor[part] for name, tensor in batch.inputs.items()}
        yield LocalBatch(inputs, batch.labels[part], batch.weights[part])
