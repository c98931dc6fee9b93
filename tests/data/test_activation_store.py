from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from finetune.data.activation_store import RowStates


class Interrupted(io.BytesIO):
    """A file that lets another thread run between moving to a place and reading there."""

    def __init__(self) -> None:
        super().__init__()
        self.readers = threading.Barrier(2)
        self.owner: threading.Thread | None = None
        self.strangers = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.owner = threading.current_thread()
        place = super().seek(offset, whence)
        try:
            self.readers.wait(0.2)  # the other thread comes here, unless it is kept out
        except threading.BrokenBarrierError:
            self.readers.reset()
        return place

    def readinto(self, buffer: object) -> int:
        self.strangers += self.owner is not threading.current_thread()
        return super().readinto(buffer)  # type: ignore[arg-type]


def test_threads_read_a_shared_file_one_at_a_time() -> None:
    file = Interrupted()
    store = RowStates(file, np.array([0, 2, 5]), 4, torch.float32)
    expected = torch.arange(24.0).view(2, 3, 4)
    expected[0, 2] = 0  # padding
    store.write(np.array([0, 1]), expected)
    with ThreadPoolExecutor(2) as threads:
        rows = [threads.submit(store.read, np.array([row]), 3) for row in (0, 1)]
        assert all(torch.equal(future.result()[0], expected[row]) for row, future in enumerate(rows))
    assert file.strangers == 0
