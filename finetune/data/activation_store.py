"""Hidden states of rows in a file: what a frozen lower part of a model makes of them.

The file is read and written, not mapped: mapped pages count as the process's own memory, and a disk that runs full
under a mapped page kills the process instead of raising an error.

    N rows, B batch, S tokens, E hidden size
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from finetune.errors import TrainingError

FROZEN_STATES = "frozen_states"  # the model input that the states are
_SEEKING = Lock()  # splits share a file, and batches may be loaded by a thread: one at a time moves its position


@dataclass(frozen=True)
class RowStates:
    """The hidden states of a split's rows, in row order, without padding.

    Attributes:
        file: may hold other splits too.
        starts: where each row's first token is in the file, in tokens, and where the last row ends, (N + 1,).
        width: the hidden size E.
        left: padding comes before the tokens.
    """

    file: BinaryIO
    starts: np.ndarray
    width: int
    dtype: torch.dtype
    left: bool = False

    def write(self, rows: np.ndarray, states: Tensor) -> None:
        """Write the states (B, S, E) of these rows; those of padding are left out."""
        real = states.detach().cpu()[self._real(rows, states.shape[1])]  # (tokens of all rows, E)
        with _SEEKING:
            for row, part in zip(rows, real.split(self._lengths(rows).tolist()), strict=True):
                self._seek(row)
                self.file.write(_bytes(part.contiguous()))

    def read(self, rows: np.ndarray, tokens: int) -> Tensor:
        """Return the states (B, S, E) of these rows, padded with zeros to `tokens`.

        Raises:
            TrainingError: the file is shorter than what was written.
        """
        lengths = self._lengths(rows)
        real = torch.empty(int(lengths.sum()), self.width, dtype=self.dtype)
        with _SEEKING:
            for row, part in zip(rows, real.split(lengths.tolist()), strict=True):
                self._seek(row)
                buffer = _bytes(part)
                if self.file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]  # every file here has it
                    raise TrainingError(f"the cache of frozen layers ends before row {row + 1}; start the run again")
        padded = torch.zeros(len(rows), tokens, self.width, dtype=self.dtype)
        padded[self._real(rows, tokens)] = real
        return padded

    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.starts[rows + 1] - self.starts[rows])

    def _seek(self, row: int) -> None:
        self.file.seek(int(self.starts[row]) * self.width * self.dtype.itemsize)

    def _real(self, rows: np.ndarray, tokens: int) -> Tensor:
        """Return which places of a batch hold tokens, (B, S)."""
        places, lengths = np.arange(tokens), self._lengths(rows)[:, None]
        return torch.from_numpy(places >= tokens - lengths if self.left else places < lengths)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")
