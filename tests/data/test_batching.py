"""Batches of padded tensors: finetune/data/batching.py."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data.batching import load_batches, prefetch_one
from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from tests.conftest import SENTENCES
from tests.support.helpers import HANG_SECONDS


def six_rows(checkpoint: Path) -> tuple[EncodedSplit, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": SENTENCES}), "here")
    return encode_split(raw, np.arange(6), tokenizer, ["sentence"], 16), tokenizer


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_batch(tiny_bert: Path, processes: int) -> None:
    split, tokenizer = six_rows(tiny_bert)
    plan = [np.array([5, 0, 2, 1]), np.array([3])]
    rows_by_batch: list[list[int]] = [[], []]
    state = torch.get_rng_state()
    for process in range(processes):
        loaded = list(
            load_batches(split, plan, tokenizer, device=torch.device("cpu"), process=process, processes=processes)
        )
        assert len(loaded) == len(plan)  # every process has a part of every batch
        for number, batch in enumerate(loaded):
            real = batch.inputs["attention_mask"].sum(1)
            assert real.tolist() == split.lengths[batch.labels.numpy()].tolist()
            assert batch.inputs["input_ids"].shape[1] == int(real.max())
            rows_by_batch[number] += batch.labels[batch.weights > 0].tolist()
    assert [sorted(rows) for rows in rows_by_batch] == [[0, 1, 2, 5], [3]]
    assert torch.equal(torch.get_rng_state(), state)  # loading does not use the random state of the run


def test_batches_are_created_lazily(tiny_bert: Path) -> None:
    split, tokenizer = six_rows(tiny_bert)
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
    # 20,000 more batches: 8 bytes each for the list in this test, and none for rows, weights or indices.
    assert memory(20_010) - memory(10) < 20_000 * 16


class RecordCopies(TorchFunctionMode):
    """Replaces an accelerator: records how tensors are pinned and copied, and leaves them on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[int] = []
        self.copied: list[tuple[str, bool, bool]] = []  # device, non-blocking, from pinned memory

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.pin_memory:
            pinned_copy = args[0].clone()
            self.pinned.append(id(pinned_copy))
            return pinned_copy
        if func is torch.Tensor.to:
            self.copied.append((args[1].type, kwargs["non_blocking"], id(args[0]) in self.pinned))
            return args[0]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("mps", False), ("xpu", False)])
def test_an_accelerator_gets_the_same_batches_padded_by_a_thread(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, device: str, pinned: bool
) -> None:
    split, tokenizer = six_rows(tiny_bert)
    plan = [np.array([5, 0]), np.array([3]), np.array([1, 2, 4])]
    expected = list(load_batches(split, plan, tokenizer, device=torch.device("cpu")))
    threads: list[threading.Thread] = []
    pad = type(tokenizer).pad

    def recording_pad(self: PreTrainedTokenizerBase, *arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return pad(self, *arguments, **named)

    monkeypatch.setattr(type(tokenizer), "pad", recording_pad)
    with RecordCopies() as copies:
        loaded = list(load_batches(split, plan, tokenizer, device=torch.device(device)))
    assert len(threads) == len(plan)
    assert threading.main_thread() not in threads
    assert len(loaded) == len(expected)
    for actual, expected_batch in zip(loaded, expected, strict=True):
        assert actual.inputs.keys() == expected_batch.inputs.keys()
        assert all(torch.equal(tensor, expected_batch.inputs[name]) for name, tensor in actual.inputs.items())
        assert torch.equal(actual.labels, expected_batch.labels)
        assert torch.equal(actual.weights, expected_batch.weights)
    tensors = len(plan) * (len(expected[0].inputs) + 2)  # plus labels and weights
    # On CUDA copies are non-blocking, which needs pinned memory; elsewhere such a copy could be read too early.
    assert copies.copied == [(device, pinned, pinned)] * tensors


def test_only_one_item_is_prepared_ahead() -> None:
    produced: list[int] = []
    ready = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number in range(5):
            produced.append(number)
            ready[number].set()
            yield number

    prefetched = prefetch_one(items())
    assert produced == []
    for number in range(3):
        assert next(prefetched) == number
        assert ready[number + 1].wait(HANG_SECONDS)
        assert produced == list(range(number + 2))
    prefetched.close()
    assert produced == [0, 1, 2, 3]
    assert list(prefetch_one(iter([]))) == []


def test_an_error_in_the_thread_is_raised_in_the_caller() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    prefetched = prefetch_one(items())
    assert next(prefetched) == 1
    with pytest.raises(ZeroDivisionError):
        next(prefetched)
