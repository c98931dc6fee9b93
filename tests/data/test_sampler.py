"""The assignment of rows to steps: finetune/data/sampler.py."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sampler import plan_epoch, plan_paired_epoch, plan_scoring, share_pairs, steps_in_epoch

strategies = st.sampled_from(["sequential", "random", "group_by_length"])


@given(strategies, st.integers(1, 300), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_each_row_occurs_once_per_epoch(strategy: str, rows: int, size: int, accumulation: int, epoch: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, rows)
    steps = plan_epoch(lengths, batch_size=size, accumulation=accumulation, strategy=strategy, seed=3, epoch=epoch)
    assert sorted(np.concatenate([batch for step in steps for batch in step])) == list(range(rows))
    assert len(steps) == steps_in_epoch(rows, batch_size=size, accumulation=accumulation)
    assert sum(len(batch) < size for step in steps for batch in step) <= 1


def test_epochs_differ_and_are_reproducible() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)

    def plan(epoch: int, seed: int = 0) -> list[int]:
        steps = plan_epoch(lengths, batch_size=8, accumulation=2, strategy="group_by_length", seed=seed, epoch=epoch)
        return [int(row) for step in steps for batch in step for row in batch]

    assert plan(0) == plan(0)
    assert plan(0) != plan(1)
    assert plan(0) != plan(0, seed=1)


def test_grouping_by_length_reduces_padding() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 5000)

    def padded(strategy: str) -> float:
        steps = plan_epoch(lengths, batch_size=32, accumulation=1, strategy=strategy, seed=0, epoch=0)
        return sum(len(b) * lengths[b].max() for step in steps for b in step) / lengths.sum()

    assert padded("random") > 2.5
    assert padded("group_by_length") < 1.15


def test_the_longest_rows_are_scored_first() -> None:
    batches = plan_scoring(np.array([3, 9, 1, 9, 5]), 2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 0], [2]]


@given(st.integers(1, 120), st.integers(1, 40), st.integers(2, 9), st.integers(1, 3), st.integers(1, 3))
def test_paired_epochs_have_each_row_once_and_pairs_of_a_class(
    rows: int, classes: int, size: int, accumulation: int, processes: int
) -> None:
    rng = np.random.default_rng(0)
    lengths, labels = rng.integers(1, 50, rows), rng.integers(0, classes, rows)
    sizes = {"batch_size": size * processes, "accumulation": accumulation}
    steps = plan_paired_epoch(lengths, labels, **sizes, seed=3, epoch=1)
    assert sorted(np.concatenate([batch for step in steps for batch in step])) == list(range(rows))
    assert len(steps) == steps_in_epoch(rows, **sizes)
    assert sum(len(batch) < size * processes for step in steps for batch in step) <= 1
    counts = np.bincount(labels)
    batches = [share_pairs(batch, processes) for step in steps for batch in step]
    pairs = sum(_pairs(labels[batch[process::processes]]) for batch in batches for process in range(processes))
    if size % 2 == 0:  # otherwise batches divide pairs; the short batch may divide some between the processes
        assert pairs >= sum(counts // 2) - (processes if rows % (size * processes) else 0)
    for batch, planned in zip(batches, (batch for step in steps for batch in step), strict=True):
        assert sorted(batch) == sorted(planned)  # the rows of a step do not depend on the number of processes


def _pairs(labels: np.ndarray) -> int:
    """Return how many of the rows 0 and 1, 2 and 3 ... have the same class."""
    return int((labels[: len(labels) // 2 * 2 : 2] == labels[1::2]).sum())


def test_paired_epochs_differ_are_reproducible_and_have_little_padding() -> None:
    rng = np.random.default_rng(0)
    lengths, labels = rng.geometric(0.05, 600), rng.integers(0, 70, 600)

    def plan(epoch: int) -> list[list[int]]:
        steps = plan_paired_epoch(lengths, labels, batch_size=16, accumulation=2, seed=0, epoch=epoch)
        return [batch.tolist() for step in steps for batch in step]

    def padding(batches: list[list[int]]) -> float:
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()

    assert plan(0) == plan(0)
    assert plan(0) != plan(1)
    random = plan_epoch(lengths, batch_size=16, accumulation=1, strategy="random", seed=0, epoch=0)
    assert padding(plan(0)) < 1.8 < padding([batch.tolist() for (batch,) in random])
