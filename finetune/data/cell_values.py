"""How cells become texts and labels. The rule is the same for files, data sets and rows in the recipe.

A cell is read as the text that is written in it: `007`, `NA`, `1984`, `true` and `2020-01-01` are not converted. Only
null, a missing key and the number NaN are empty cells. Numbers and booleans of a typed column are formatted as in JSON.
A value without such a text (a struct, bytes, a date in a typed column, an infinite number) is an error with its row.

    N rows
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.label_cells import HOW_TO_WRITE_SETS, list_as_json, lists_as_json
from finetune.errors import DataError, did_you_mean, shorten

T = TypeVar("T")

BATCH_ROWS = 10_000  # number of rows read at a time
_SCALARS = "texts, numbers or booleans"


@dataclass(frozen=True)
class Column:
    """A column that is read.

    Attributes:
        key: what selects the column: a key of the recipe's data section, or an option of a command.
        lists: whether its cells are sets of labels, each a list or a text.
    """

    name: str
    key: str
    lists: bool = False

    @property
    def setting(self) -> str:
        """What selects the column, as the user writes it."""
        return self.key if self.key.startswith("--") else f"data.{self.key}"

    def error(self, where: str, row: int, problem: str) -> DataError:
        """Return the error for one row of this column."""
        return DataError(f"{where} row {row}: column '{self.name}' ({self.setting}) {problem}")

    def not_a_set_message(self, value: str) -> str:
        """Return the message for a cell that is neither a list nor a text."""
        return f"has {value}, but multi_label_classification needs a set of labels; {HOW_TO_WRITE_SETS}"

    def list_message(self, kind: str = "a list") -> str:
        """Return the message for a cell that is a list."""
        if self.key == "label_column":
            return f"contains {kind}; give one label per row, or set task.problem_type: multi_label_classification"
        return f"contains {kind}; it must contain {_SCALARS}"


def require_columns(columns: Sequence[Column], names: Sequence[str], where: str) -> None:
    """Raise DataError unless each column occurs in `names` exactly once."""
    for column in columns:
        if column.name not in names:
            shown = ", ".join(shorten(name, 40) for name in names[:20]) + (", ..." if len(names) > 20 else "")
            shown = shown or "no columns"
            fix = did_you_mean(column.name, names) or f"; set {column.setting} to the right column"
            raise DataError(f"{where} has no column '{column.name}' ({column.setting}); it has {shown}{fix}")
        if list(names).count(column.name) > 1:
            raise DataError(f"{where} has two columns '{column.name}' ({column.setting}); rename one of them")


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    while block := list(islice(items, size)):
        yield block


def empty_cells(cells: pa.Array) -> np.ndarray:
    """Return which cells are null or contain only white space, (N,)."""
    empty = pc.is_null(cells)
    if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        empty = pc.or_kleene(empty, pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(cells)), 0))
    return np.asarray(empty.to_numpy(zero_copy_only=False), dtype=bool)


def make_batch(arrays: Sequence[pa.Array], columns: Sequence[Column]) -> pa.RecordBatch:
    """Return the arrays as a batch of rows with the types of the columns."""
    return pa.RecordBatch.from_arrays(list(arrays), schema=arrow_schema(columns))


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema of the columns: all are texts, and a list of labels is written as JSON."""
    return pa.schema([(column.name, pa.string()) for column in columns])


def batches_from_objects(
    rows: Iterator[Mapping[str, object]], columns: Sequence[Column], where: str
) -> Iterator[pa.RecordBatch]:
    """Yield rows of Python values (from JSON or from the recipe) in batches.

    Raises:
        DataError: a column is missing in all rows, or a cell cannot be read as text.
    """
    seen: dict[str, None] = {}
    first_row, block = 1, []
    for row in rows:
        seen.update(dict.fromkeys(row))
        block.append(row)
        if len(block) == BATCH_ROWS:
            yield _batch_from_objects(block, columns, where, first_row)
            first_row, block = first_row + BATCH_ROWS, []
    if first_row > 1 or block:
        require_columns(columns, list(seen), where)
    yield _batch_from_objects(block, columns, where, first_row)


def _batch_from_objects(
    block: Sequence[Mapping[str, object]], columns: Sequence[Column], where: str, first_row: int
) -> pa.RecordBatch:
    arrays = [
        cells_from_values([row.get(column.name) for row in block], column, where, first_row) for column in columns
    ]
    return make_batch(arrays, columns)


def cells_from_values(values: Sequence[object], column: Column, where: str, first_row: int) -> pa.Array:
    """Return Python values as cells.

    Args:
        first_row: the number of the first row.

    Raises:
        DataError: a value cannot be read as text; the message names its row.
    """
    convert = _label_set if column.lists else _text
    cells = []
    for row, value in enumerate(values, start=first_row):
        try:
            cells.append(convert(value, column))
        except ValueError as error:
            raise column.error(where, row, str(error)) from error
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError as error:
        row = first_row + next(index for index, cell in enumerate(cells) if not _is_unicode(cell))
        raise column.error(
            where, row, "contains an unpaired surrogate, which is not a character; correct it"
        ) from error


def _is_unicode(cell: object) -> bool:
    try:
        str(cell).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: object, column: Column) -> str | None:
    """Return a value as text, or None for an empty cell.

    Raises:
        ValueError: the value cannot be read as text.
    """
    if value is None or type(value) is str:
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError("contains an infinite number; correct it, or remove the row")
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list | tuple):
        raise ValueError(column.list_message())
    kind = "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    raise ValueError(f"contains {kind}; it must contain {_SCALARS}")


def _label_set(value: object, column: Column) -> str | None:
    """Return a list of labels as JSON, and any other value as text; ValueError if it is not a list of labels."""
    if type(value) in (bool, int, float) and value == value:  # not NaN
        raise ValueError(column.not_a_set_message(f"the single value {str(value).lower()}"))
    if not isinstance(value, list | tuple):
        return _text(value, column)
    item_column = Column(column.name, "text_column")  # a list inside the list is an error, as in a text column
    return list_as_json([_text(item, item_column) for item in value])


def cells_from_arrow(
    cells: pa.Array, column: Column, where: str, first_row: int, names: Sequence[str] | None = None
) -> pa.Array:
    """Return a typed column as cells.

    Args:
        first_row: the number of the first row.
        names: the label names of a ClassLabel column, whose cells are codes.

    Raises:
        DataError: the type or a value cannot be read as text; the message names the row.
    """
    rows = np.arange(first_row, first_row + len(cells))
    kind = cells.type
    if pa.types.is_dictionary(kind):
        return cells_from_arrow(cells.dictionary_decode(), column, where, first_row, names)
    if not is_list(kind):
        if column.lists and not (_is_text(kind) or pa.types.is_null(kind)):
            raise column.error(where, _first_row(cells, rows), column.not_a_set_message(f"single values ({kind})"))
        return _scalar_cells(cells, column, where, rows, names)
    if not column.lists:
        raise column.error(where, _first_row(cells, rows), column.list_message(f"lists ({kind})"))
    lengths = pc.fill_null(pc.list_value_length(cells), 0).to_numpy()
    items = _scalar_cells(pc.list_flatten(cells), column, where, np.repeat(rows, lengths), names)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return lists_as_json(pa.ListArray.from_arrays(pa.array(ends), items, mask=pc.is_null(cells)))


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is one of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _first_row(cells: pa.Array, rows: np.ndarray) -> int:
    """Return the number of the first row with a value."""
    valid = np.flatnonzero(cells.is_valid().to_numpy(zero_copy_only=False))
    return int(rows[valid[0]]) if len(valid) else int(rows[0]) if len(rows) else 1


def _scalar_cells(
    cells: pa.Array, column: Column, where: str, rows: np.ndarray, names: Sequence[str] | None
) -> pa.StringArray:
    """Return a column of single values as texts; `rows` (N,) are their row numbers."""
    kind = cells.type
    if pa.types.is_dictionary(kind):
        return _scalar_cells(cells.dictionary_decode(), column, where, rows, names)
    if names is not None and pa.types.is_integer(kind):
        return _class_names(cells, column, where, rows, names)
    if pa.types.is_floating(kind):
        return _floats(cells, column, where, rows)
    number = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    if not (_is_text(kind) or number or pa.types.is_null(kind)):
        raise column.error(where, _first_row(cells, rows), f"contains {kind}; it must contain {_SCALARS}")
    texts = cells.cast(pa.string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        row = next(row for row, cell in zip(rows, texts, strict=True) if not _is_utf8(cell))
        raise column.error(where, int(row), "contains bytes that are not UTF-8; save the file as UTF-8") from error
    return texts


def _is_utf8(cell: pa.StringScalar) -> bool:
    try:
        cell.as_py()
        return True
    except UnicodeDecodeError:
        return False


def _floats(cells: pa.Array, column: Column, where: str, rows: np.ndarray) -> pa.StringArray:
    """Return floating-point numbers as in JSON (1 as "1.0"), and NaN as an empty cell."""
    numbers = cells.cast(pa.float32()) if pa.types.is_float16(cells.type) else cells
    infinite = np.flatnonzero(pc.fill_null(pc.is_inf(numbers), False).to_numpy(zero_copy_only=False))
    if len(infinite):
        problem = "contains an infinite number; correct it, or remove the row"
        raise column.error(where, int(rows[infinite[0]]), problem)
    numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(None, numbers.type), numbers)
    return pc.replace_substring_regex(numbers.cast(pa.string()), r"^(-?\d+)$", r"\1.0")


def _class_names(codes: pa.Array, column: Column, where: str, rows: np.ndarray, names: Sequence[str]) -> pa.StringArray:
    """Return the label names for the codes of a ClassLabel column; -1, which marks an unlabeled row, becomes "-1"."""
    known = np.asarray(pc.fill_null(codes.cast(pa.int64()), -1))
    unknown = np.flatnonzero((known < -1) | (known >= len(names)))
    if len(unknown):
        problem = (
            f"has the code {known[unknown[0]]}, but the data set has {len(names)} classes with codes from 0; correct it"
        )
        raise column.error(where, int(rows[unknown[0]]), problem)
    table = pa.array([*names, "-1"], pa.string())
    return table.take(pc.if_else(pc.equal(codes, -1), len(names), codes.cast(pa.int64())))
