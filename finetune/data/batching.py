"""Batches of padded tensors, made from the row numbers that the sampler (sampler.py) chose."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.data.activation_store import FROZEN_STATES
from finetune.data.padding import Padding
from finetune.data.token_rows import TokenRows
from finetune.data.tokenization import EncodedSplit
from finetune.data.tokenizer_calls import padding_of
from finetune.data.windows import WINDOW_COUNTS, select_rows
from finetune.out_of_memory import halve_rows, is_out_of_memory

T = TypeVar("T")
PREFETCHED = 8  # batches that are ready while one is computed: a slow read from the disk then delays nothing
_LABELS, _WEIGHTS = "labels", "weights"  # of a packed batch, beside the model inputs
_ALIGNMENT = 64  # bytes, of each tensor in a packed batch: kernels load up to 16 bytes at a time


@dataclass(frozen=True)
class LocalBatch:
    """One process's rows of a micro-batch: model inputs, labels, and the weight of each row (0: filler).

    If a row has several windows, the model inputs are those of data/windows.py.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PackedBatch:
    """A batch in one block of memory, which is copied to a device at once.

    The number of windows per row stays on the CPU, where it is read (data/windows.py).

    Attributes:
        batch: the batch on the CPU.
        block: copies of its tensors, in bytes.
        starts: the position of each tensor in the block.
        pinned: whether the block is in pinned memory, from which CUDA copies asynchronously. torch keeps such memory
            when it is freed, and uses it again when the copies from it are done.
    """

    batch: LocalBatch
    block: Tensor
    starts: list[int]
    pinned: bool

    @classmethod
    def of(cls, batch: LocalBatch, *, pinned: bool) -> PackedBatch:
        """Return a batch in one block of memory."""
        sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in _moved(batch).values()]
        *starts, total = accumulate(sizes, initial=0)
        packed = cls(batch, torch.empty(total, dtype=torch.uint8, pin_memory=pinned), starts, pinned)
        parts = packed._parts(packed.block)
        for name, tensor in _moved(batch).items():
            parts[name].copy_(tensor)
        return packed

    def to(self, device: torch.device) -> LocalBatch:
        """Return the batch on a device. Only CUDA is copied to asynchronously.

        Other accelerators do not guarantee that such a copy is complete when its result is used.
        """
        parts = self._parts(self.block.to(device, non_blocking=self.pinned))
        labels, weights = parts.pop(_LABELS), parts.pop(_WEIGHTS)
        return LocalBatch({**self.batch.inputs, **parts}, labels, weights)

    def _parts(self, block: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the batch that a block holds."""
        return {
            name: block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, (name, tensor) in zip(self.starts, _moved(self.batch).items(), strict=True)
        }


def _moved(batch: LocalBatch) -> dict[str, Tensor]:
    """Return the tensors of a batch that are needed on the device."""
    inputs = {name: tensor for name, tensor in batch.inputs.items() if name != WINDOW_COUNTS}
    return {**inputs, _LABELS: batch.labels, _WEIGHTS: batch.weights}


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
    the next batches during the computation, and copies to the device are asynchronous.
    """
    padded = _padded_batches(split, batches, padding_of(tokenizer), process, processes)
    if device.type == "cpu":
        yield from padded  # a thread would take time from the computation
    else:
        packed = (PackedBatch.of(batch, pinned=device.type == "cuda") for batch in padded)
        yield from (batch.to(device) for batch in prefetch(packed, PREFETCHED))


def _padded_batches(
    split: EncodedSplit, batches: Sequence[np.ndarray], padding: Padding, process: int, processes: int
) -> Iterator[LocalBatch]:
    """Yield this process's rows of each batch, padded, on the CPU."""
    tokens, labels = TokenRows.of(split.rows), np.asarray(split.labels)
    dtype = np.float32 if labels.dtype.kind == "f" else np.int64
    for batch in batches:
        rows = batch[process::processes] if len(batch) > process else batch[:1]
        arrays, window_counts = tokens.batch(rows, padding)
        inputs = {name: torch.from_numpy(values) for name, values in arrays.items()}
        if window_counts is not None and window_counts.max() > 1:
            inputs[WINDOW_COUNTS] = torch.from_numpy(window_counts)
        if split.states is not None:
            inputs[FROZEN_STATES] = split.states.read(rows, inputs["input_ids"].shape[1])
        weights = torch.full((len(rows),), float(len(batch) > process))
        yield LocalBatch(inputs, torch.from_numpy(labels[rows].astype(dtype)), weights)


def prefetch(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield the items; a thread prepares up to `depth` items while the caller uses the current one.

    An error in the thread is raised here. The thread ends with this iterator, also if the caller stops early.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := upcoming.popleft().result()) is not end:
                upcoming.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in upcoming:
                future.cancel()


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
