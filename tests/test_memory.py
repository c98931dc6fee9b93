from __future__ import annotations

import pytest
import torch

from finetune.data.batching import LocalBatch
from finetune.errors import TrainingError
from finetune.memory import fewer_rows, in_parts, is_out_of_memory, memory_told


def test_memory_that_ran_out_is_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)  # torch's own words, on this version
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_parts_make_up_the_batch() -> None:
    batch = LocalBatch({"input_ids": torch.arange(10).view(5, 2)}, torch.arange(5), torch.ones(5))
    assert list(in_parts(batch, None)) == [batch]
    assert list(in_parts(batch, 5)) == [batch]
    parts = list(in_parts(batch, 2))
    assert [len(part.labels) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.inputs["input_ids"] for part in parts]), batch.inputs["input_ids"])
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


def test_one_row_is_the_end() -> None:
    assert [fewer_rows(rows, "x") for rows in (8, 3, 2)] == [4, 1, 1]
    with pytest.raises(TrainingError, match=r"out of memory in scoring with one row at a time; lower data.max_length"):
        fewer_rows(1, "scoring")


def test_memory_without_a_repair_is_a_message() -> None:
    with (
        pytest.raises(
            TrainingError,
            match=r"\(CUDA out of memory.\); in scoring .*eval_batch_size, in training .*train_batch_size",
        ),
        memory_told(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    with pytest.raises(RuntimeError, match="shapes"), memory_told():
        raise RuntimeError("shapes")
