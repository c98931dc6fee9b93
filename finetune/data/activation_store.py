"""A file of hidden states: the output of the frozen layers of a model for every row of a split.

The file is read and written without memory mapping: mapped pages count as memory of the process, and a full disk kills
a process that writes to a mapped page instead of raising an error.

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

FROZEN_STATES = "frozen_states"  # name of the model input with the states
_FILE_LOCK = Lock()  # splits share a file, and a thread may load batches: only one may move the file position


@dataclass(frozen=True)
class RowStates:
    """The hidden states of all rows of a split, in row order, without padding.

    Attributes:
        file: may also contain the states of other splits.
        starts: position of the first token of each row in the file, and the end of the last row, in tokens, (N + 1,).
        width: the hidden size E.
        left_padding: whether the tokenizer pads before the tokens.
    """

    file: BinaryIO
    starts: np.ndarray
    width: int
    dtype: torch.dtype
    left_padding: bool = False

    def write(self, rows: np.ndarray, states: Tensor) -> None:
        """Write the states (B, S, E) of these rows, without those of padding."""
        tokens_only = states.detach().cpu()[self._token_mask(rows, states.shape[1])]  # (tokens of all rows, E)
        with _FILE_LOCK:
            for row, part in zip(rows, tokens_only.split(self._lengths(rows).tolist()), strict=True):
                self._seek(row)
                self.file.write(_bytes(part.contiguous()))

    def read(self, rows: np.ndarray, tokens: int) -> Tensor:
        """Return the states (B, S, E) of these rows, padded with zeros to `tokens`.

        Raises:
            TrainingError: the file is incomplete.
        """
        lengths = self._lengths(rows)
        tokens_only = torch.empty(int(lengths.sum()), self.width, dtype=self.dtype)
        with _FILE_LOCK:
            for row, part in zip(rows, tokens_only.split(lengths.tolist()), strict=True):
                self._seek(row)
                buffer = _bytes(part)
                if self.file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]  # a method of every file that is used here
                    raise TrainingError(f"the cache of frozen layers ends before row {row + 1}; start the run again")
        padded = torch.zeros(len(rows), tokens, self.width, dtype=self.dtype)
        padded[self._token_mask(rows, tokens)] = tokens_only
        return padded

    def _lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.starts[rows + 1] - self.starts[rows])

    def _seek(self, row: int) -> None:
        self.file.seek(int(self.starts[row]) * self.width * self.dtype.itemsize)

    def _token_mask(self, rows: np.ndarray, tokens: int) -> Tensor:
        """Return the mask of real tokens in a padded batch, (B, S)."""
        positions, lengths = np.arange(tokens), self._lengths(rows)[:, None]
        return torch.from_numpy(positions >= tokens - lengths if self.left_padding else positions < lengths)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")
