"""The sampler: chooses the rows of each training step, and the order in which rows are scored.

The choice depends only on the seed and the epoch, and is made for all processes together. The number of processes does
not change which rows are in a step, and a resumed run gets the same rows without repeating earlier steps.

    N rows
"""

from __future__ import annotations

import numpy as np

_BLOCK = 100  # number of batches that are sorted by length together: about 5 % padding, and still a random order

Step = list[np.ndarray]


def plan_epoch(
    lengths: np.ndarray, *, batch_size: int, accumulation: int, strategy: str, seed: int, epoch: int
) -> list[Step]:
    """Return the optimizer steps of an epoch: lists of micro-batches, which are arrays of row numbers.

    Every row occurs once. At most one batch of an epoch is smaller than the others.

    Args:
        lengths: tokens per row, (N,).
        batch_size: rows per micro-batch over all processes.
        accumulation: micro-batches per optimizer step.
        strategy: sequential, random, or group_by_length (rows of similar length per batch, batches in random order).
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
    """Return the number of optimizer steps in an epoch of `rows` rows."""
    return -(-rows // (batch_size * accumulation))


def plan_scoring(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row numbers in order of length, longest rows first, so that there is little padding."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
