from __future__ import annotations

import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from finetune.data.batching import load_batches, plan_epoch, plan_scoring, steps_in_epoch
from finetune.data.encoding import encode_split
from finetune.data.read import RawSplit
from tests.conftest import SENTENCES

strategies = st.sampled_from(["sequential", "random", "group_by_length"])


@given(strategies, st.integers(1, 300), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_each_row_is_seen_once_an_epoch(strategy: str, rows: int, size: int, accumulation: int, epoch: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, rows)
    steps = plan_epoch(lengths, batch_size=size, accumulation=accumulation, strategy=strategy, seed=3, epoch=epoch)
    assert sorted(np.concatenate([batch for step in steps for batch in step])) == list(range(rows))
    assert len(steps) == steps_in_epoch(rows, batch_size=size, accumulation=accumulation)
    assert sum(len(batch) < size for step in steps for batch in step) <= 1


def test_epochs_differ_and_repeat() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)

    def plan(epoch: int, seed: int = 0) -> list[int]:
        steps = plan_epoch(lengths, batch_size=8, accumulation=2, strategy="group_by_length", seed=seed, epoch=epoch)
        return [int(row) for step in steps for batch in step for row in batch]

    assert plan(0) == plan(0)
    assert plan(0) != plan(1)
    assert plan(0) != plan(0, seed=1)


def test_grouping_by_length_spares_padding() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 5000)

    def padded(strategy: str) -> float:
        steps = plan_epoch(lengths, batch_size=32, accumulation=1, strategy=strategy, seed=0, epoch=0)
        return sum(len(b) * lengths[b].max() for step in steps for b in step) / lengths.sum()

    assert padded("random") > 2.5
    assert padded("group_by_length") < 1.15


def test_scoring_goes_from_long_to_short() -> None:
    batches = plan_scoring(np.array([3, 9, 1, 9, 5]), 2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_batch(tiny_bert: Path, processes: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": SENTENCES}), "here")
    split = encode_split(raw, np.arange(6), tokenizer, ["sentence"], 16)
    plan = [np.array([5, 0, 2, 1]), np.array([3])]
    seen: list[list[int]] = [[], []]
    state = torch.get_rng_state()
    for process in range(processes):
        loaded = list(
            load_batches(split, plan, tokenizer, device=torch.device("cpu"), process=process, processes=processes)
        )
        assert len(loaded) == len(plan)  # every process takes part in every batch
        for number, batch in enumerate(loaded):
            real = batch.inputs["attention_mask"].sum(1)
            assert real.tolist() == split.lengths[batch.labels.numpy()].tolist()
            assert batch.inputs["input_ids"].shape[1] == int(real.max())
            seen[number] += batch.labels[batch.weights > 0].tolist()
    assert [sorted(rows) for rows in seen] == [[0, 1, 2, 5], [3]]
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing from the run's random state


def test_batches_are_listed_as_they_are_needed(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": SENTENCES}), "here")
    split = encode_split(raw, np.arange(6), tokenizer, ["sentence"], 16)
    row = np.array([0])

    def memory(batches: int) -> int:
        loaded = load_batches(split, [row] * batches, tokenizer, device=torch.device("cpu"))
        next(loaded)
        tracemalloc.start()
        next(loaded)
        loaded = load_batches(split, [row] * batches, tokenizer, device=torch.device("cpu"))
        next(loaded)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    memory(10)
    # 20,000 batches more: 8 bytes each for the list that the test makes itself, none for rows, weights or numbers.
    assert memory(20_010) - memory(10) < 20_000 * 16
