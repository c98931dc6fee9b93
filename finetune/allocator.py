"""The memory of a process that trains on a CPU."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for its next tensors; return whether the system can.

    glibc asks the system anew for each tensor above 32 MiB, and gives much of the rest back at once; the system then
    hands it out page by page, each of them zeroed. The gradient of a vocabulary of 30,522 words alone took 18 ms a step
    so, and takes 2 ms of kept memory (measured on a virtual machine). The most memory that a process takes is the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
