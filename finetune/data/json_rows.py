"""Reading json and jsonl files. Strings, numbers, true and false are read as they are written.

Both formats may have one object per line, or one list of objects. A json file may also be one object of columns, as
pandas writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from finetune.data.cell_values import Column, batches_from_objects
from finetune.data.compressed_files import open_text
from finetune.errors import DataError

_SHAPE = "write one object per line, or one list of objects"


def read_json(file: Path, kind: str, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a json or jsonl file in batches.

    Raises:
        DataError: the file is not JSON, or a row is not an object; the message names the line or row.
    """
    yield from batches_from_objects(_read_objects(file, kind, _DECODER), columns, str(file))


def read_typed_objects(file: Path, kind: str) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a json or jsonl file as they are: numbers are numbers, and their text is as it is written.

    Raises:
        DataError: the file is not JSON, or a row is not an object; the message names the line or row.
    """
    return _read_objects(file, kind, _TYPED_DECODER)


def _read_objects(file: Path, kind: str, decoder: json.JSONDecoder) -> Iterator[Mapping[str, object]]:
    one_document = _is_one_document(file, kind)
    with open_text(file) as text:
        if one_document:
            yield from _rows_of_document(_decode(text.read(), f"{file}", decoder), file)
            return
        for number, line in enumerate(text, start=1):
            if line.strip():
                row = _decode(line.rstrip(), f"{file} line {number}", decoder)
                if not isinstance(row, dict):
                    raise DataError(f"{file} line {number} contains {_type_name(row)} instead of an object; {_SHAPE}")
                yield row


def _is_one_document(file: Path, kind: str) -> bool:
    """Return whether the file is a single JSON value, not one per line."""
    with open_text(file) as text:
        start = next((line.strip() for line in text if line.strip()), "")
        more = next((line for line in text if line.strip()), None) is not None
    if start.startswith("["):
        return True
    if kind == "jsonl":
        return False
    if not more:
        return True  # one line: an object of columns, one row, or something else
    try:
        _DECODER.decode(start)
    except (ValueError, RecursionError):
        return True  # an object that covers several lines
    return False


def _rows_of_document(value: object, file: Path) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a single JSON value: a list of objects, an object of columns, or one row."""
    if isinstance(value, list):
        for number, row in enumerate(value, start=1):
            if not isinstance(row, dict):
                raise DataError(f"{file} row {number} contains {_type_name(row)} instead of an object; {_SHAPE}")
            yield row
    elif not isinstance(value, dict):
        raise DataError(f"{file} contains {_type_name(value)} instead of rows; {_SHAPE}")
    elif value and all(isinstance(column, list | dict) for column in value.values()):
        yield from _rows_of_columns(value, file)
    elif value:
        yield value


def _rows_of_columns(columns: Mapping[str, Any], file: Path) -> Iterator[Mapping[str, object]]:
    """Yield the rows of an object of columns, which are lists of cells, or objects from row index to cell."""
    named = {name: dict(enumerate(cells)) if isinstance(cells, list) else cells for name, cells in columns.items()}
    lengths = {name: len(cells) for name, cells in named.items()}
    keys = next(iter(named.values())).keys()
    if any(cells.keys() != keys for cells in named.values()):
        raise DataError(f"{file} is one object whose columns have different rows ({lengths}); {_SHAPE}")
    for key in keys:
        yield {name: cells[key] for name, cells in named.items()}


def _object_with_unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object as a dict; ValueError if a key occurs twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{repeated[:40]}' occurs twice in one object")
    return values


def _parse_constant(name: str) -> float | None:
    return None if name == "NaN" else float(name.replace("Infinity", "inf"))


# Numbers are kept as text: 1.50 does not become 1.5, and a long number keeps all its digits.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_with_unique_keys, parse_int=str, parse_float=str, parse_constant=_parse_constant
)


class _WrittenFloat(float):
    """A number that is shown as it is written: str() gives "1.50" or "1e5", as the other decoder does."""

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


_TYPED_DECODER = json.JSONDecoder(object_pairs_hook=_object_with_unique_keys, parse_float=_WrittenFloat)


def _decode(text: str, where: str, decoder: json.JSONDecoder) -> object:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if error.lineno > 1 else ""
        problem = f"{error.msg} at character {error.colno}"
        raise DataError(f"{where}{line} is not valid JSON: {problem}; correct it ({_SHAPE})") from error
    except ValueError as error:
        raise DataError(f"{where} cannot be read: {error}; correct it") from error
    except RecursionError as error:
        raise DataError(f"{where} has lists or objects that are nested too deeply; write plain rows") from error


def _type_name(value: object) -> str:
    """Return the kind of a JSON value, such as "a list"; some numbers were decoded as text."""
    if value is None:
        return "null"
    names = {bool: "true or false", str: "a text or a number", float: "a number", int: "a number"}
    return {**names, list: "a list", dict: "an object"}[type(value)]
