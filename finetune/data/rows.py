"""The rows of a split after reading, and how messages name them.

N rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # importing it takes half a second, and the checks of rows do not need it
    import datasets

_MAX_SHOWN = 5  # number of row numbers in one message


@dataclass(frozen=True)
class RawSplit:
    """The rows of a split, in Arrow.

    Attributes:
        rows: text columns and labels, as texts.
        source: the file, files, data set or recipe key from which the rows were read.
        numbers: the number of each row in that source, counted from 1, (N,); None: 1 to N.
        class_names: the label names, if the data set declares them (a ClassLabel feature).
        dropped: number of rows without a label that were skipped.
        parsed: columns of N values in place of those of `rows`: the lists of labels of multi_label_classification.
        files: each file, and the number of rows in the files before it; empty if there is one source.
        notes: how the labels were read, where this is a choice.
    """

    rows: datasets.Dataset
    source: str
    numbers: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    dropped: int = 0
    parsed: Mapping[str, pa.ChunkedArray] = field(default_factory=dict)
    files: Sequence[tuple[Path, int]] = ()
    notes: tuple[str, ...] = ()

    def row_numbers(self) -> np.ndarray:
        """Return the number of each row in its file or data set, counted from 1, (N,)."""
        return np.arange(1, len(self.rows) + 1) if self.numbers is None else self.numbers

    def select(self, positions: np.ndarray) -> RawSplit:
        """Return the split with only the rows at these sorted positions, counted from 0. Row numbers stay the same."""
        if getattr(self.rows, "cache_files", None):
            from finetune.data.row_cache import take_rows  # imports `datasets`, which the checks of rows do not need

            rows = take_rows(self.rows, positions, self.source)
        else:
            rows = self.rows.select(positions).flatten_indices()
        parsed = {name: cells.take(pa.array(positions)) for name, cells in self.parsed.items()}
        return replace(self, rows=rows, numbers=self.row_numbers()[positions], parsed=parsed)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column as an Arrow array."""
        return self.parsed[name] if name in self.parsed else self.rows.data[name]

    def describe_rows(self, positions: Sequence[int] | np.ndarray) -> str:
        """Return "FILE row 3" or "FILE rows 3, 8 and 9 more" for positions counted from 0.

        For rows of several files it is "FILE row 3, OTHER rows 1, 2 and 9 more", with the number in each file.
        """
        numbers = self.row_numbers()[np.asarray(positions, dtype=np.int64)]
        if not self.files:
            return f"{self.source} {format_row_numbers(numbers.tolist())}"
        starts = np.array([rows_before for _, rows_before in self.files])
        of_file: dict[int, list[int]] = {}
        for number in numbers[:_MAX_SHOWN].tolist():
            index = max(0, int(np.searchsorted(starts, number)) - 1)  # the last file that starts before the row
            of_file.setdefault(index, []).append(number - int(starts[index]))
        shown = ", ".join(f"{self.files[index][0]} {format_row_numbers(rows)}" for index, rows in of_file.items())
        return shown + (f" and {len(numbers) - _MAX_SHOWN} more" if len(numbers) > _MAX_SHOWN else "")


def format_row_numbers(numbers: Sequence[int]) -> str:
    """Return "row 3" or "rows 3, 8 and 9 more" for row numbers counted from 1."""
    shown = ", ".join(map(str, numbers[:_MAX_SHOWN]))
    more = f" and {len(numbers) - _MAX_SHOWN} more" if len(numbers) > _MAX_SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"
