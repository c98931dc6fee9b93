"""Read the rows of each split, and check them before anything costs time.

Rows stay in Arrow: a data set larger than memory is read from disk as it is used.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from finetune.errors import DataError, did_you_mean
from finetune.recipe import DataSection

_SHOWN = 5  # row numbers named in one message


@dataclass(frozen=True)
class RawSplit:
    """The rows of a split as they were read, and where from."""

    rows: datasets.Dataset
    where: str

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column as Arrow."""
        return self.rows.with_format("arrow")[:][name] if self.rows._indices is not None else self.rows.data[name]


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
    for name in wanted.values():
        column = raw.column(name)
        empty = pc.is_null(column)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            empty = pc.or_kleene(empty, pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0))
        numbers = [index + 1 for index, bad in enumerate(empty.to_pylist()) if bad] if pc.any(empty).as_py() else []
        if numbers:
            raise DataError(f"{raw.where} {row_list(numbers)}: column '{name}' is empty; fill it or remove the row")


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
        columns = _header(file, delimiter)
        features = datasets.Features({column: datasets.Value("string") for column in columns})
        # As text, all of it: pandas would read "007" as 7, and NA or null as an empty cell.
        options = {"sep": delimiter, "keep_default_na": False, "features": features, "encoding": "utf-8-sig"}
    builder = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}[kind]
    try:
        rows = datasets.load_dataset(builder, data_files=str(file), split="train", **options)
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


def _header(file: Path, delimiter: str) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter)
        columns, first = next(lines, []), next(lines, None)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or not columns:
        raise DataError(f"{file} line 1 should name the columns once each, got {columns}; correct the header")
    if first is None:
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
                "or give local files as data.train_file and data.validation_file"
            ) from error
        splits[split] = RawSplit(rows, where)
    return splits


def hold_out(splits: Mapping[str, RawSplit], share: float, seed: int) -> dict[str, RawSplit]:
    """Return the splits with `share` of the training rows moved to validation, drawn with `seed`."""
    train = splits["train"]
    parts = train.rows.train_test_split(test_size=share, seed=seed)
    where = f"{share:g} of {train.where}"
    return {
        **splits,
        "train": replace(train, rows=parts["train"]),
        "validation": RawSplit(parts["test"], where),
    }


def rows_also_in(raw: RawSplit, train: RawSplit, columns: Sequence[str]) -> int:
    """Return how many rows have a text that training has too, case and outer blanks aside."""
    return int(pc.sum(pc.is_in(_joined(raw, columns), value_set=_joined(train, columns))).as_py() or 0)


def _joined(raw: RawSplit, columns: Sequence[str]) -> pa.ChunkedArray:
    texts = [pc.utf8_lower(pc.utf8_trim_whitespace(raw.column(name).cast(pa.string()))) for name in columns]
    return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")
