"""Detection of out-of-memory errors, smaller micro-batches after one, and the message if that does not help."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune.errors import TrainingError

if sys.platform == "win32":
    import psutil
else:
    import resource

# Messages of out-of-memory errors that are raised as a plain RuntimeError or torch.AcceleratorError. A device-side
# assert, an illegal address and CUBLAS_STATUS_NOT_INITIALIZED are not listed, as a smaller micro-batch would not help.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "MPS backend out of memory",
    "Invalid buffer size: ",  # MPS: one tensor exceeds the largest buffer
    "CUDA error: out of memory",  # the CUDA runtime, outside torch's allocator
    "HIP error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",  # cuDNN 8; the next two: cuDNN 9
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",  # this and the next: the XPU runtime
    "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the accelerator or the machine ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def halve_rows(rows: int, where: str) -> int:
    """Return half of `rows`, for another attempt with a smaller micro-batch.

    Call it after the last reference to tensors of the failed attempt is gone, so that their memory is free.

    Raises:
        TrainingError: `rows` is 1.
    """
    if rows <= 1:
        raise TrainingError(
            f"out of memory in {where} with one row at a time; lower data.max_length, or use a smaller model "
            "or a machine with more memory"
        )
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()  # free cached blocks that are too small for the next request
    return rows // 2


@contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error in the block into a TrainingError that names the settings to change.

    Raises:
        TrainingError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"out of memory ({reason}); in scoring and head analysis, lower evaluation.per_device_eval_batch_size; in "
            "training, lower training.per_device_train_batch_size and raise training.gradient_accumulation_steps by "
            "the same factor, or train adapters (peft); or use a machine with more memory"
        ) from error


def oom_message(rows: int, full_rows: int, step: int) -> str:
    """Return the message that training prints when it reduces the micro-batch from `full_rows` to `rows` rows."""
    return (
        f"Out of memory at step {step}: the micro-batch is now {rows} rows instead of {full_rows}, with "
        f"{-(-full_rows // rows)} times the accumulation. The rows of each step stay the same."
    )


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory so far in MB (10^6 bytes): of the accelerator if it records one, else of the process."""
    if device.type in ("cuda", "xpu"):
        return float(torch.get_device_module(device).max_memory_allocated(device)) / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
