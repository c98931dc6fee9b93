"""Memory that runs out: recognized, and worked around with smaller parts of a batch."""

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

# What is raised as a plain RuntimeError or torch.AcceleratorError when memory runs out. A device-side assert, an
# illegal address or CUBLAS_STATUS_NOT_INITIALIZED is not among them: smaller parts of a batch would not help.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "MPS backend out of memory",
    "Invalid buffer size: ",  # MPS: one tensor is larger than a buffer may be
    "CUDA error: out of memory",  # the CUDA runtime, outside torch's allocator
    "HIP error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",  # cuDNN 8; the next two: cuDNN 9
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",  # XPU's runtime, and the next
    "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, of the accelerator or of the machine, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def halve_rows(rows: int, where: str) -> int:
    """Return half of `rows`, for another try once nothing holds on to the tensors of the first.

    Raises:
        TrainingError: there is but one row.
    """
    if rows <= 1:
        raise TrainingError(
            f"out of memory in {where} with one row at a time; lower data.max_length, take a smaller model, or a "
            "machine with more memory"
        )
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()  # free blocks that are too small for what is asked next
    return rows // 2


@contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Turn memory that runs out where nothing can be halved into a message.

    Raises:
        TrainingError: memory ran out within.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"out of memory ({reason}); in scoring and head analysis lower evaluation.per_device_eval_batch_size, in "
            "training lower training.per_device_train_batch_size and raise training.gradient_accumulation_steps as "
            "much, or train adapters (peft), or take a machine with more memory"
        ) from error


def oom_message(rows: int, whole: int, step: int) -> str:
    """Return what is said of a step that is done `rows` rows at a time instead of `whole`."""
    return (
        f"Out of memory at step {step}: from here on {rows} rows at a time instead of {whole}, with "
        f"{-(-whole // rows)} times the accumulation. The rows of each step stay the same."
    )


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory so far, in 10^6 bytes: of the accelerator if it keeps that figure, else of the process."""
    if device.type in ("cuda", "xpu"):
        return float(torch.get_device_module(device).max_memory_allocated(device)) / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
