"""The first rows of a data file with all columns, and what kind of values each column has. Imports no torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from finetune.data.cell_values import BATCH_ROWS
from finetune.data.csv_rows import header_delimiter, read_all_columns
from finetune.data.file_formats import readable
from finetune.data.json_rows import read_typed_objects
from finetune.data.typed_rows import TYPED, open_typed
from finetune.errors import DataError
from finetune.recipe.data_files import file_format

_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(\.0*)?\s*")
_DATE = r"\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
# A date can have a time, a time zone and the like after it, but no words: a line of a log begins with a date too.
_DATE_OR_LINK = re.compile(rf"\s*(({_DATE})[\sT\d:.,+/-]*[A-Za-z]{{0,5}}|(https?://|www\.)\S*)\s*")


@dataclass(frozen=True)
class PreviewColumn:
    """A column of the first rows.

    Attributes:
        values: one per row: text, number, true or false, list, mapping, or None.
    """

    name: str
    values: Sequence[object]

    @cached_property
    def texts(self) -> list[str]:
        """Return the values that are not empty, as texts; of lists, their items."""
        flat = [item for value in self.values for item in (value if isinstance(value, list) else [value])]
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in flat if not _is_empty(value)]

    @cached_property
    def counts(self) -> Counter[str]:
        """Return the number of occurrences of each value, without empty ones; whole numbers are written as such."""
        return Counter(self.whole_number(text) or text for text in self.texts)

    @staticmethod
    def whole_number(text: str) -> str | None:
        """Return "1" for "1" and "1.0", and None for any other text."""
        match = _WHOLE.fullmatch(text)
        return match[1] if match else None

    @property
    def has_lists(self) -> bool:
        """Return whether every value that is not empty is a list."""
        values = [value for value in self.values if value is not None]
        return bool(values) and all(isinstance(value, list) for value in values)

    @cached_property
    def is_plain(self) -> bool:
        """Return whether every value is a text, a number, true or false, or empty."""
        return not any(isinstance(value, list | Mapping) for value in self.values) and bool(self.texts)

    @cached_property
    def is_number(self) -> bool:
        """Return whether every value is a number."""
        return self.is_plain and all(_NUMBER.fullmatch(text) for text in self.counts)

    @cached_property
    def is_integer(self) -> bool:
        """Return whether every value is a whole number."""
        return self.is_plain and all(_WHOLE.fullmatch(text) for text in self.counts)

    @cached_property
    def is_date_or_link(self) -> bool:
        """Return whether every value is a date or a web address."""
        return self.is_plain and all(_DATE_OR_LINK.fullmatch(text) for text in self.counts)

    @cached_property
    def mean_words(self) -> float:
        """Return the mean number of words of the values that are not empty."""
        return sum(len(text.split()) for text in self.texts) / max(1, len(self.texts))

    @property
    def num_empty(self) -> int:
        """Return the number of empty cells; an empty list is not one."""
        return sum(map(_is_empty, self.values))


def _is_empty(value: object) -> bool:
    """Return whether training would read the value as an empty cell; the text "nan" is none."""
    return value is None or not str(value).strip() or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Preview:
    """The first rows of a file.

    Attributes:
        columns: in the order of the file.
        num_rows: number of rows read.
        complete: whether these are all rows.
        delimiter: what separates the cells of a csv or txt file; None for other formats.
    """

    file: Path
    columns: Mapping[str, PreviewColumn]
    num_rows: int
    complete: bool
    delimiter: str | None = None


def read_preview(file: Path, delimiter: str | None = None) -> Preview:
    """Return the first rows of a data file with all columns.

    Args:
        delimiter: what separates the cells of a csv file; None: what separates those of its header.

    Raises:
        DataError: the file cannot be read, has no rows, or names a column twice.
    """
    file_type = file_format(file)
    with readable(file, file_type):
        if file_type in ("csv", "txt"):
            delimiter = delimiter or header_delimiter(file, file_type)
        if file_type in ("json", "jsonl"):
            names, rows = _objects(file, file_type)
        else:
            names, rows = _table(file, file_type, delimiter)
    if not rows:
        raise DataError(f"{file} has no rows; add at least one")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{file} has two columns '{repeated[0]}'; rename one of them")
    complete = len(rows) <= BATCH_ROWS
    shown = rows[:BATCH_ROWS]
    columns = {name: PreviewColumn(name, [row[index] for row in shown]) for index, name in enumerate(names)}
    return Preview(file, columns, len(shown), complete, delimiter if file_type in ("csv", "txt") else None)


def _table(file: Path, file_type: str, delimiter: str | None) -> tuple[list[str], list[Sequence[object]]]:
    """Return the names of the columns of a file, and its first rows, at least one too many if there are more."""
    rows: list[Sequence[object]] = []

    def add(batches: Iterator[pa.RecordBatch]) -> None:
        for batch in batches:
            rows.extend(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            if len(rows) > BATCH_ROWS:
                break

    if file_type in TYPED:
        with open_typed(file, file_type) as opened:
            add(opened.batches(BATCH_ROWS + 1, None))
            return list(opened.schema.names), rows
    batches = read_all_columns(file, file_type, [], BATCH_ROWS + 1, delimiter)
    first = next(batches)
    add(chain([first], batches))
    return list(first.schema.names), rows


def _objects(file: Path, file_type: str) -> tuple[list[str], list[Sequence[object]]]:
    """Return the names of the columns of a json or jsonl file, and its first rows, at most one too many."""
    read: Iterator[Mapping[str, object]] = islice(read_typed_objects(file, file_type), BATCH_ROWS + 1)
    objects = list(read)
    names = list(dict.fromkeys(name for row in objects for name in row))
    return names, [[row.get(name) for name in names] for row in objects]
