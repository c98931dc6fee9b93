from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from finetune import out_of_memory
from finetune.data.batching import LocalBatch, split_batch
from finetune.errors import TrainingError
from finetune.out_of_memory import halve_rows, is_out_of_memory, peak_memory_mb, report_out_of_memory

CUDA_ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call"


@pytest.mark.parametrize(
    ("error", "message", "expected"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of", True),
        (torch.OutOfMemoryError, "XPU out of memory. Tried to allocate 20.00 GiB", True),
        (torch.AcceleratorError, f"CUDA error: out of memory{CUDA_ADVICE}", True),
        (RuntimeError, "HIP error: out of memory", True),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        (RuntimeError, "MPS backend out of memory (MPS allocated: 15.72 GiB, other allocations: 2.41 MiB, max", True),
        (RuntimeError, "Invalid buffer size: 19.45 GiB", True),
        (RuntimeError, "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", True),
        (
            RuntimeError,
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
            True,
        ),
        (torch.AcceleratorError, f"CUDA error: device-side assert triggered{CUDA_ADVICE}", False),
        (torch.AcceleratorError, f"CUDA error: an illegal memory access was encountered{CUDA_ADVICE}", False),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", False),
        (RuntimeError, "shapes do not fit", False),
        (ValueError, "CUDA error: out of memory", False),  # no device raises this
        (IndexError, "index out of range in self", False),
    ],
)
def test_out_of_memory_messages_are_recognized(error: type[Exception], message: str, expected: bool) -> None:
    assert is_out_of_memory(error(message)) is expected


def test_an_out_of_memory_error_of_this_machine_is_recognized() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)  # the message of the installed version of torch
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_peak_memory_is_that_of_the_accelerator_or_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = peak_memory_mb(torch.device("cpu"))
    assert 50 < before < 1e6  # megabytes: torch alone takes more than the lower bound
    module = SimpleNamespace(max_memory_allocated=lambda device: 3_000_000)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert [peak_memory_mb(torch.device(device)) for device in ("cuda", "xpu")] == [3.0, 3.0]
    assert peak_memory_mb(torch.device("mps")) >= before  # MPS keeps no peak


def test_on_windows_without_the_resource_module_psutil_gives_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=5_000_000))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    assert out_of_memory.__spec__ is not None
    reloaded = importlib.util.module_from_spec(out_of_memory.__spec__)
    out_of_memory.__spec__.loader.exec_module(reloaded)
    assert reloaded.peak_memory_mb(torch.device("cpu")) == 5.0


def test_halving_the_rows_frees_the_memory_cached_by_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    module = SimpleNamespace(empty_cache=lambda: freed.append(True))
    monkeypatch.setattr(torch, "get_device_module", lambda: module)
    assert halve_rows(8, "x") == 4
    assert freed == [True]


def test_the_parts_of_a_batch_add_up_to_the_batch() -> None:
    batch = LocalBatch({"input_ids": torch.arange(10).view(5, 2)}, torch.arange(5), torch.ones(5))
    assert list(split_batch(batch, None)) == [batch]
    assert list(split_batch(batch, 5)) == [batch]
    parts = list(split_batch(batch, 2))
    assert [len(part.labels) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.inputs["input_ids"] for part in parts]), batch.inputs["input_ids"])
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


def test_one_row_cannot_be_halved() -> None:
    assert [halve_rows(rows, "x") for rows in (8, 3, 2)] == [4, 1, 1]
    with pytest.raises(TrainingError, match=r"out of memory in scoring with one row at a time; lower data.max_length"):
        halve_rows(1, "scoring")


def test_out_of_memory_outside_a_batch_gives_one_error_message() -> None:
    with (
        pytest.raises(
            TrainingError,
            match=r"\(CUDA out of memory.\); in scoring .*eval_batch_size; in training, .*train_batch_size",
        ),
        report_out_of_memory(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    with pytest.raises(RuntimeError, match="shapes"), report_out_of_memory():
        raise RuntimeError("shapes")
