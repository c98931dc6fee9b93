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

from finetune.data.batching import load_batches, prefetch
from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from tests.conftest import SENTENCES
from tests.support.helpers import HANG_SECONDS
from tests.support.windows import windowed


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
    """Replaces an accelerator: records how tensors are copied to it, and copies them on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[str, bool]] = []  # device, non-blocking

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            self.copied.append((args[1].type, kwargs["non_blocking"]))
            return args[0].clone()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("mps", False), ("xpu", False)])
def test_an_accelerator_gets_the_same_batches_padded_by_a_thread(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, device: str, pinned: bool
) -> None:
    classifier, split = windowed(tiny_bert)
    plan = [np.array([4, 0]), np.array([3]), np.array([1, 2, 4]), np.array([0])]
    expected = list(load_batches(split, plan, classifier.tokenizer, device=torch.device("cpu")))
    packed: list[tuple[threading.Thread, bool]] = []
    empty = torch.empty

    def recording_empty(*arguments: Any, pin_memory: bool, **named: Any) -> torch.Tensor:
        packed.append((threading.current_thread(), pin_memory))
        return empty(*arguments, **named)

    monkeypatch.setattr(torch, "empty", recording_empty)
    with RecordCopies() as copies:
        loaded = list(load_batches(split, plan, classifier.tokenizer, device=torch.device(device)))
    monkeypatch.undo()
    assert len(loaded) == len(expected) == len(plan)
    for actual, expected_batch in zip(loaded, expected, strict=True):
        assert list(actual.inputs) == list(expected_batch.inputs)
        pairs = [(actual.inputs[name], tensor) for name, tensor in expected_batch.inputs.items()]
        for tensor, same in [*pairs, (actual.labels, expected_batch.labels), (actual.weights, expected_batch.weights)]:
            assert torch.equal(tensor, same)
            assert (tensor.dtype, tensor.stride()) == (same.dtype, same.stride())
    # One copy per batch. On CUDA it is non-blocking, which needs pinned memory; elsewhere it could be read too early.
    assert copies.copied == [(device, pinned)] * len(plan)
    assert [pin for _, pin in packed] == [pinned] * len(plan)
    assert threading.main_thread() not in [thread for thread, _ in packed]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_at_most_this_many_items_are_prepared(depth: int) -> None:
    produced: list[int] = []
    ready = [threading.Event() for _ in range(9)]

    def items() -> Iterator[int]:
        for number in range(9):
            produced.append(number)
            ready[number].set()
            yield number

    prefetched = prefetch(items(), depth)
    assert produced == []
    for number in range(3):
        assert next(prefetched) == number
        assert ready[number + depth].wait(HANG_SECONDS)
        assert produced == list(range(number + depth + 1))
    prefetched.close()
    assert produced == list(range(depth + 3))
    assert list(prefetch(iter([]), depth)) == []
    assert list(prefetch(iter("abcd"), depth)) == list("abcd")


def test_an_error_in_the_thread_is_raised_in_the_caller() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    prefetched = prefetch(items(), 3)
    assert next(prefetched) == 1
    with pytest.raises(ZeroDivisionError):
        next(prefetched)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_thread_ends_when_the_caller_stops(error: type[BaseException]) -> None:
    threads: list[threading.Thread] = []

    def items() -> Iterator[int]:
        threads.append(threading.current_thread())
        yield from range(10**9)

    def use() -> None:
        for number in prefetch(items(), 2):
            if number == 2:
                raise error

    with pytest.raises(error):
        use()
    assert len(threads) == 1
    threads[0].join(HANG_SECONDS)
    assert not threads[0].is_alive()
