from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from finetune.data.activation_store import RowStates


class SlowFile(io.BytesIO):
    """A file that gives another thread time to run between a seek and the read that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.readers = threading.Barrier(2)
        self.owner: threading.Thread | None = None
        self.foreign_reads = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.owner = threading.current_thread()
        position = super().seek(offset, whence)
        try:
            self.readers.wait(0.2)  # the other thread gets here unless a lock prevents it
        except threading.BrokenBarrierError:
            self.readers.reset()
        return position

    def readinto(self, buffer: object) -> int:
        self.foreign_reads += self.owner is not threading.current_thread()
        return super().readinto(buffer)  # type: ignore[arg-type]


def test_threads_read_a_shared_file_one_at_a_time() -> None:
    file = SlowFile()
    store = RowStates(file, np.array([0, 2, 5]), 4, torch.float32)
    expected = torch.arange(24.0).view(2, 3, 4)
    expected[0, 2] = 0  # padding
    store.write(np.array([0, 1]), expected)
    with ThreadPoolExecutor(2) as threads:
        rows = [threads.submit(store.read, np.array([row]), 3) for row in (0, 1)]
        assert all(torch.equal(future.result()[0], expected[row]) for row, future in enumerate(rows))
    assert file.foreign_reads == 0
