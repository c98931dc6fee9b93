"""Token ids of any rows of a split, read from Arrow without a Python object per row and without a copy of the split.

N rows, B rows of a batch, W windows of these rows
"""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from finetune.data.padding import Padding

WINDOWS = "windows"  # column of the rows: the number of tokens in each window


@dataclass(frozen=True)
class _ListColumn:
    """A column of lists, in any number of chunks.

    Attributes:
        column: keeps the memory of the chunks, which may be a mapped file.
        row_ends: number of rows up to the end of each chunk.
        offsets, values: arrays that reach from the first chunk in memory to the last, see `_spanning`: the positions at
            which the lists of a chunk start and end, and the values of the lists.
        offsets_from, values_from: what is added to the number of a row, and to its offsets, in each chunk.
    """

    column: pa.ChunkedArray
    row_ends: np.ndarray
    offsets: np.ndarray
    values: np.ndarray
    offsets_from: np.ndarray
    values_from: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _ListColumn:
        """Return the column of a table; null lists are not expected."""
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        row_ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        offsets, offsets_from = _spanning([chunk.offsets.to_numpy() for chunk in chunks])
        values, values_from = _spanning([chunk.values.to_numpy() for chunk in chunks])
        first_rows = row_ends - [len(chunk) for chunk in chunks]
        return cls(column, row_ends, offsets, values, offsets_from - first_rows, values_from)

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the position in `values` of the first value of each of these rows, and their lengths, both (B,)."""
        chunks = np.searchsorted(self.row_ends, rows, side="right")
        offsets = rows + self.offsets_from[chunks]
        starts, ends = (self.offsets[positions].astype(np.int64) for positions in (offsets, offsets + 1))
        return starts + self.values_from[chunks], ends - starts


def _spanning(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return one array through which all arrays can be read, without a copy, and the position of each of them in it.

    It reaches from the first array in memory to the end of the last. What is between them belongs to others and must
    not be read: the arrays can be parts of a mapped file, or of different files.
    """
    filled = next((array for array in arrays if len(array)), np.zeros(1, np.int64))
    arrays = [array if len(array) else filled[:1] for array in arrays] or [filled]
    distances = np.array([array.ctypes.data for array in arrays])
    first = int(distances.argmin())
    distances -= distances[first]
    assert not (distances % filled.itemsize).any(), "Arrow aligns its buffers to 8 bytes or more"
    positions = distances // filled.itemsize
    length = max(position + len(array) for position, array in zip(positions.tolist(), arrays, strict=True))
    return as_strided(arrays[first], (length,), (filled.itemsize,), writeable=False), positions


@dataclass(frozen=True)
class TokenRows:
    """The token ids of a split's rows.

    Attributes:
        ids, type_ids, windows: the columns with token ids, segment ids, and tokens per window; None: there is no such
            column.
        selected: the rows of the table that are in the split, (N,); None: all, in their order.
    """

    ids: _ListColumn
    type_ids: _ListColumn | None
    windows: _ListColumn | None
    selected: np.ndarray | None

    @classmethod
    def of(cls, rows: datasets.Dataset) -> TokenRows:
        """Return the token ids in `EncodedSplit.rows`."""
        names, table = rows.column_names, rows.data
        ids, type_ids, windows = (
            _ListColumn.of(table.column(name)) if name in names else None
            for name in ("input_ids", "token_type_ids", WINDOWS)
        )
        assert ids is not None
        selected = None if rows._indices is None else rows._indices.column(0).to_numpy().astype(np.int64)
        return cls(ids, type_ids, windows, selected)

    def batch(self, rows: np.ndarray, padding: Padding) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return the model inputs of these rows, one sequence per window, and the number of windows of each row, (B,).

        The number is None if long texts are not read in windows.
        """
        rows = rows if self.selected is None else self.selected[rows]
        starts, lengths = self.ids.spans(rows)
        type_starts = starts if self.type_ids is None else self.type_ids.spans(rows)[0]
        counts = None
        if self.windows is not None:
            first_windows, counts = self.windows.spans(rows)
            before = np.cumsum(counts) - counts
            numbers = np.arange(counts.sum()) - np.repeat(before, counts)  # of each window in its row, (W,)
            lengths = self.windows.values[np.repeat(first_windows, counts) + numbers]
            shift = np.cumsum(lengths) - lengths  # tokens before each window: in its row, after the next line
            shift -= np.repeat(shift[before], counts)
            starts, type_starts = (np.repeat(values, counts) + shift for values in (starts, type_starts))
        type_ids = None if self.type_ids is None else (self.type_ids.values, type_starts)
        return padding.batch(lengths, (self.ids.values, starts), type_ids), counts
