"""The rows of a split as every later stage takes them, and how messages name them.

N rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa

_SHOWN = 5  # row numbers named in one message


@dataclass(frozen=True)
class RawSplit:
    """The rows of a split, in Arrow.

    Attributes:
        rows: text columns, and labels as text or lists of texts.
        where: the file, data set or recipe key that they are from.
        numbers: the rows' numbers there, from 1, (N,); None: in order.
        class_names: the names of the labels where the data set declares them (a ClassLabel feature).
        dropped: rows without a label that were left out.
    """

    rows: datasets.Dataset
    where: str
    numbers: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    dropped: int = 0

    def row_numbers(self) -> np.ndarray:
        """Return the number of each row where it is from, (N,)."""
        return np.arange(1, len(self.rows) + 1) if self.numbers is None else self.numbers

    def select(self, kept: np.ndarray) -> RawSplit:
        """Return the split with these rows alone, which keep the numbers they have."""
        return replace(self, rows=self.rows.select(kept).flatten_indices(), numbers=self.row_numbers()[kept])

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column as Arrow."""
        return self.rows.data[name]

    def named(self, rows: Sequence[int] | np.ndarray) -> str:
        """Return "FILE row 3" or "FILE rows 3, 8 and 9 more" for positions counted from 0."""
        return f"{self.where} {row_list(self.row_numbers()[np.asarray(rows, dtype=np.int64)].tolist())}"


def row_list(numbers: Sequence[int]) -> str:
    """Return "row 3" or "rows 3, 8 and 9 more" for row numbers counted from 1."""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"
