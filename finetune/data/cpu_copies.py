"""Results of many batches, copied from the device to the CPU in blocks.

B rows of a batch
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**22  # numbers that stay on the device before they are copied together: 16 MiB in float32

Block = tuple[np.ndarray, list[Tensor]]  # row numbers, (B,), and results of these rows, (B, ...) each


class CpuCopies:
    """Collects the results of batches.

    A copy waits until the device has computed the result, and the next batch is started late. Results therefore stay on
    the device until they have _BLOCK numbers.
    """

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._waiting: list[Block] = []
        self._numbers = 0

    def add(self, rows: np.ndarray, *results: Tensor) -> None:
        """Add the results of a batch, (B, ...) each, on any device."""
        self._waiting.append((rows, [result.detach() for result in results]))
        self._numbers += sum(result.numel() for result in results)
        if self._numbers >= _BLOCK:
            self._copy()

    def blocks(self) -> list[Block]:
        """Return rows and results of all batches on the CPU, in the order in which they were added."""
        self._copy()
        return self._blocks

    def _copy(self) -> None:
        if self._waiting:
            rows, results = zip(*self._waiting, strict=True)
            columns = zip(*results, strict=True)
            self._blocks.append((np.concatenate(rows), [torch.cat(column).cpu() for column in columns]))
        self._waiting, self._numbers = [], 0
