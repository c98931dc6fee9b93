from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Counts the pages that the system hands out while one large tensor is made again and again.
SCRIPT = """
import resource, torch
from finetune.models.cpu_kernels import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
anew = pages()
assert keep_freed_memory()
pages()
print(anew, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    anew, kept = map(int, done.stdout.split())
    assert anew > 1000  # 480 MB in pages of 4 KiB or larger
    assert kept < anew / 100
