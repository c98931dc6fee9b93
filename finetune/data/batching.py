"""Batches of padded tensors, made from the row numbers that the sampler (sampler.py) chose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from finetune.data.activation_store import FROZEN_STATES
from finetune.data.tokenization import WINDOWS, EncodedSplit
from finetune.data.windows import WINDOW_COUNTS, select_rows
from finetune.out_of_memory import halve_rows, is_out_of_memory

T = TypeVar("T")


@dataclass(frozen=True)
class LocalBatch:
    """One process's rows of a micro-batch: model inputs, labels, and the weight of each row (0: filler).

    If a row has several windows, the model inputs are those of data/windows.py.
    """

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
    """Yield this process's rows of each batch, padded to the longest of them, on `device`.

    If a short batch has no row for a process, the process gets one row with weight 0, because all processes must take
    part. If the split has cached states of frozen layers, they are among the inputs. For an accelerator, a thread pads
    the next batch during the computation, and copies to the device are asynchronous.
    """
    padded = _padded_batches(split, batches, tokenizer, process, processes)
    if device.type == "cpu":
        yield from padded  # a thread would take time from the computation
    else:
        yield from (_to_device(batch, device) for batch in prefetch_one(padded))


def _padded_batches(
    split: EncodedSplit,
    batches: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    process: int,
    processes: int,
) -> Iterator[LocalBatch]:
    """Yield this process's rows of each batch, padded, on the CPU."""

    def local_batches() -> Iterator[np.ndarray]:
        """Yield the row numbers of each batch lazily, because there may be millions of batches."""
        for batch in batches:
            yield batch[process::processes] if len(batch) > process else batch[:1]

    loader: DataLoader[Any] = DataLoader(
        split.rows,
        batch_sampler=(rows.tolist() for rows in local_batches()),
        collate_fn=partial(_collate, DataCollatorWithPadding(tokenizer)),
        generator=torch.Generator().manual_seed(0),  # the loader draws a seed: not from the global generator
    )
    for batch, rows, inputs in zip(batches, local_batches(), loader, strict=True):
        if split.states is not None:
            inputs[FROZEN_STATES] = split.states.read(rows, inputs["input_ids"].shape[1])
        tensors = dict(inputs)
        labels = tensors.pop("labels")
        yield LocalBatch(tensors, labels, torch.full((len(rows),), float(len(batch) > process)))


def _collate(pad: DataCollatorWithPadding, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the padded tensors of some rows, with the number of their windows if one of them has several."""
    if WINDOWS not in rows[0]:
        return dict(pad(rows))
    counts = [len(row[WINDOWS]) for row in rows]
    windows = []
    for row in rows:
        ends = np.cumsum(row[WINDOWS]).tolist()
        tokens = {name: values for name, values in row.items() if name not in (WINDOWS, "labels")}
        windows += [{name: values[start:end] for name, values in tokens.items()} for start, end in pairwise([0, *ends])]
    several = {WINDOW_COUNTS: torch.tensor(counts)} if max(counts) > 1 else {}
    return {**pad(windows), **several, "labels": torch.tensor([row["labels"] for row in rows])}


def _to_device(batch: LocalBatch, device: torch.device) -> LocalBatch:
    """Return the batch on `device`. On CUDA it is copied asynchronously from pinned memory.

    Other accelerators do not guarantee that such a copy is complete when its result is used, so they copy
    synchronously.
    """
    pinned = device.type == "cuda"

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=pinned)

    inputs = {name: move(tensor) for name, tensor in batch.inputs.items()}
    return LocalBatch(inputs, move(batch.labels), move(batch.weights))


def prefetch_one(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; a thread prepares the next item while the caller uses the current one."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield item


def split_batch(batch: LocalBatch, max_rows: int | None) -> Iterator[LocalBatch]:
    """Yield a batch in parts of at most `max_rows` rows; None: undivided."""
    if max_rows is None or len(batch.weights) <= max_rows:
        yield batch
        return
    for start in range(0, len(batch.weights), max_rows):
        part = slice(start, start + max_rows)
        yield LocalBatch(select_rows(batch.inputs, part), batch.labels[part], batch.weights[part])


def map_parts(
    function: Callable[[LocalBatch], T], batch: LocalBatch, max_rows: int | None, action: str
) -> tuple[list[T], int | None]:
    """Return the results of `function` for all parts of a batch, and the number of rows that fit in memory at a time.

    If memory runs out, that number is halved. Each process has its own number, because the processes do not communicate
    while they score rows.

    Args:
        max_rows: rows per part; None: all.
        action: what runs, for messages, such as "scoring".

    Raises:
        TrainingError: there is not enough memory for one row.
    """
    while True:
        try:
            return [function(part) for part in split_batch(batch, max_rows)], max_rows
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside `except`, where the error's traceback would keep the tensors of the failed part in memory.
        max_rows = halve_rows(min(max_rows or len(batch.labels), len(batch.labels)), action)
        print(f"Out of memory in {action}: continuing with {max_rows} rows at a time.", file=sys.stderr)
