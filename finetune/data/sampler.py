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


def plan_paired_epoch(
    lengths: np.ndarray, labels: np.ndarray, *, batch_size: int, accumulation: int, seed: int, epoch: int
) -> list[Step]:
    """Return the optimizer steps of an epoch as `plan_epoch` does, with pairs of rows of the same class in each batch.

    Contrastive training compares rows of a class with each other; with many classes, a batch of random rows has hardly
    two of the same class. The rows of each class are paired at random; two rows that remain alone in their classes form
    a pair, too. A batch consists of random pairs of similar length, each in two adjacent places. Every row occurs once.

    Args:
        labels: class of each row, (N,).
    """
    rng = np.random.default_rng([seed, epoch])
    order = _classes_together(rng.permutation(len(labels)), labels, rng)
    alone = order[len(order) // 2 * 2 :]  # the last row of an odd number
    pairs = rng.permutation(order[: len(order) - len(alone)].reshape(-1, 2))
    block = batch_size * _BLOCK // 2
    blocks = [pairs[start : start + block] for start in range(0, len(pairs), block)]
    by_length = [part[np.argsort(-lengths[part].max(axis=1), kind="stable")].ravel() for part in blocks]
    order = np.concatenate([*by_length, alone])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = [batches[index] for index in rng.permutation(len(batches))]
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def _classes_together(order: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rows grouped by class, an even number of each; the rows that remain follow at the end."""
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    last = (first + counts - 1)[counts % 2 == 1]
    return np.concatenate([np.delete(order, last), rng.permutation(order[last])])


def share_pairs(batch: np.ndarray, processes: int) -> np.ndarray:
    """Return the rows of a batch in another order, so that process p gets full pairs as rows p, p + `processes`, ..."""
    full = len(batch) // (2 * processes) * 2 * processes
    pairs = batch[:full].reshape(-1, processes, 2).swapaxes(1, 2)
    return np.concatenate([pairs.ravel(), batch[full:]])


def steps_in_epoch(rows: int, *, batch_size: int, accumulation: int) -> int:
    """Return the number of optimizer steps in an epoch of `rows` rows."""
    return -(-rows // (batch_size * accumulation))


def plan_scoring(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches of row numbers in order of length, longest rows first, so that there is little padding."""
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
