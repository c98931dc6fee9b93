"""Read the rows of each split, and check them before anything costs time.

Rows stay in Arrow: a data set larger than memory is read from disk as it is used.
"""

from __future__ import annotations

import csv
import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.errors import DataError, did_you_mean
from finetune.recipe import DataSection

_SHOWN = 5  # row numbers named in one message
_BLOCK = 100_000  # rows whose texts are compared at once


@dataclass(frozen=True)
class RawSplit:
    """The rows of a split, where they are from, and their numbers there (from 1; None: in order)."""

    rows: datasets.Dataset
    where: str
    numbers: np.ndarray | None = None

    def select(self, kept: np.ndarray) -> RawSplit:
        """Return the split with these rows alone, which keep the numbers they have."""
        numbers = np.arange(1, len(self.rows) + 1) if self.numbers is None else self.numbers
        return RawSplit(self.rows.select(kept).flatten_indices(), self.where, numbers[kept])

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column as Arrow."""
        return self.rows.data[name]


def quiet_datasets() -> None:
    """Keep the library's bars and log lines off the terminal: what goes wrong is told by DataError."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)


def read_splits(data: DataSection) -> dict[str, RawSplit]:
    """Return split name -> rows for every split that the recipe names.

    Raises:
        DataError: a file or the hub's data set cannot be read, or a row is unusable; the message names the
            file and the row (counted from 1, the header left out).
    """
    if data.train_rows is not None:
        named = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
        splits = {split: _from_rows(rows, f"data.{split}_rows") for split, rows in named.items() if rows is not None}
    elif data.train_file is not None:
        splits = {split: _from_file(file) for split, file in data.local_files().items()}
    else:
        splits = _from_hub(data)
    for raw in splits.values():
        check_rows(raw, data)
    return splits


def check_rows(raw: RawSplit, data: DataSection) -> None:
    """Raise DataError if a split is empty, lacks a column, or has a row without text or label."""
    if not raw.rows.num_rows:
        raise DataError(f"{raw.where} has no rows; give it at least one")
    wanted = {"text_column": data.text_column, "label_column": data.label_column}
    if data.text_pair_column:
        wanted["text_pair_column"] = data.text_pair_column
    columns = raw.rows.column_names
    for key, name in wanted.items():
        if name not in columns:
            repair = did_you_mean(name, columns) or "; name one of them"
            raise DataError(f"{raw.where} has no column '{name}' (data.{key}); it has {', '.join(columns)}{repair}")
    for key, name in wanted.items():
        column = raw.column(name)
        if pa.types.is_struct(column.type) or (pa.types.is_nested(column.type) and key != "label_column"):
            raise DataError(f"{raw.where}: column '{name}' (data.{key}) holds {column.type}; it must hold plain values")
        empty = np.concatenate([_empty(chunk) for chunk in column.chunks])
        if empty.any():
            numbers = row_list((np.flatnonzero(empty) + 1).tolist())
            raise DataError(f"{raw.where} {numbers}: column '{name}' is empty; fill it or remove the row")


def _empty(cells: pa.Array) -> np.ndarray:
    """Return which cells hold nothing, or nothing but blanks."""
    empty = pc.is_null(cells)
    if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        empty = pc.or_kleene(empty, pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(cells)), 0))
    return np.asarray(empty.to_numpy(zero_copy_only=False), dtype=bool)


def row_list(numbers: Sequence[int]) -> str:
    """Return "row 3" or "rows 3, 8 and 9 more" for row numbers counted from 1."""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _from_rows(rows: list[dict[str, object]], where: str) -> RawSplit:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = {name: [_plain(row.get(name)) for row in rows] for name in columns}
    return RawSplit(datasets.Dataset.from_dict(table), where)


def _plain(value: object) -> object:
    """Return a cell as text, so that one column never mixes types; lists and None stay."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool):
        return str(value).lower()
    return value if value is None else str(value)


def _from_file(name: str) -> RawSplit:
    file = Path(name)
    kind = file.suffix.lstrip(".")
    if not file.stat().st_size:
        raise DataError(f"{file} is empty (0 bytes); it needs rows")
    options: dict[str, Any] = {}
    if kind != "parquet":
        _check_utf8(file)
    if kind in ("csv", "tsv"):
        delimiter = "\t" if kind == "tsv" else ","
        # A tab-separated file has no quoting: a quotation mark is text, as in the published GLUE files.
        quoting: Literal[0, 3] = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
        columns = _header(file, delimiter, quoting)
        features = datasets.Features({column: datasets.Value("string") for column in columns})
        # As text, all of it: pandas would read "007" as 7, and NA or null as an empty cell.
        options = {
            "sep": delimiter,
            "quoting": quoting,
            "keep_default_na": False,
            "index_col": False,
            "features": features,
            "encoding": "utf-8-sig",
        }
    builder = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}[kind]
    try:
        rows = datasets.load_dataset(builder, data_files=glob.escape(str(file)), split="train", **options)
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise DataError(f"{file} cannot be read as {kind}: {_root(error)}; correct the file") from error
    return RawSplit(rows, str(file))


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _check_utf8(file: Path) -> None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = line[error.start : error.start + 1].hex()
                raise DataError(
                    f"{file} line {number} is not UTF-8 (byte 0x{bad} at position {error.start + 1}); "
                    "save the file as UTF-8"
                ) from error


def _header(file: Path, delimiter: str, quoting: Literal[0, 3]) -> list[str]:
    """Return the names of the columns, once every row is known to have as many cells."""
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, quoting=quoting)
        columns, rows = next(lines, []), 0
        if len(set(columns)) < len(columns) or not columns:
            raise DataError(f"{file} line 1 should name the columns once each, got {columns}; correct the header")
        other = next((sign for sign in ";\t|," if len(columns) == 1 and sign in columns[0]), None)
        if other:
            raise DataError(
                f"{file} seems to be separated by {other!r}; separate csv by commas, or name a tab-separated file .tsv"
            )
        for cells in lines:
            rows += bool(cells)
            if cells and len(cells) != len(columns):
                raise DataError(
                    f"{file} row {rows} (line {lines.line_num}) has {len(cells)} cells, but the header names "
                    f"{len(columns)} columns; put quotation marks around a text with a {delimiter!r} in it"
                )
    if not rows:
        raise DataError(f"{file} has no rows below its header; give it at least one")
    return columns


def _from_hub(data: DataSection) -> dict[str, RawSplit]:
    names = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    splits = {}
    for split, name in names.items():
        if name is None:
            continue
        where = f"{data.dataset_name} (split {name})"
        try:
            rows = datasets.load_dataset(data.dataset_name, data.dataset_config_name, split=name)
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            raise DataError(
                f"data.dataset_name: cannot load {where}: {_root(error)}; correct the name, go online, "
                "give local files as data.train_file and data.validation_file, or name its splits "
                "(data.train_split, data.validation_split, data.test_split; null for none)"
            ) from error
        splits[split] = RawSplit(rows, where)
    return splits


def rows_also_in(raw: RawSplit, train: RawSplit, columns: Sequence[str]) -> int:
    """Return how many rows have a text that training has too, case and outer blanks aside.

    Texts are taken in blocks, so that neither split is in memory as a whole.
    """
    found = 0
    for texts in _texts_in_blocks(raw, columns):
        wanted = pc.unique(texts)
        seen = np.zeros(len(wanted), dtype=bool)
        for others in _texts_in_blocks(train, columns):
            places = pc.index_in(others, value_set=wanted).drop_null().to_numpy(zero_copy_only=False)
            seen[places] = True
            if seen.all():
                break
        found += int(seen[pc.index_in(texts, value_set=wanted).to_numpy()].sum())
    return found


def _texts_in_blocks(raw: RawSplit, columns: Sequence[str]) -> Iterator[pa.Array]:
    table = raw.rows.data.table.select(list(columns))
    for start in range(0, len(table), _BLOCK):
        block = table.slice(start, _BLOCK)
        texts = [pc.utf8_lower(pc.utf8_trim_whitespace(block[name].cast(pa.string()))) for name in columns]
        yield (texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")).combine_chunks()
