"""Reading `data.dataset_name`: a local folder of data files, or a data set on the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import datasets
import numpy as np

from finetune.data.cell_values import Column, arrow_schema
from finetune.data.class_names import feature_names, parquet_class_names, read_dataset, schema_class_names
from finetune.data.file_formats import file_format, read_file
from finetune.data.row_cache import cache_error, store_rows
from finetune.data.rows import RawSplit
from finetune.errors import DataError
from finetune.progress import stage
from finetune.recipe.data_section import DataSection
from finetune.recipe.validation import FILE_TYPES

_BUILDERS = ("csv", "json", "parquet")  # `datasets` only lists the files of these builders; this package reads them


@dataclass(frozen=True)
class _Folder:
    """A local folder of data files: its name, the files of each split, and the class names in its README."""

    name: str
    files: dict[str, list[Path]]
    class_names: list[str] | None


def read_named(data: DataSection, columns: Sequence[Column]) -> dict[str, RawSplit]:
    """Return split name -> rows of the data set in the recipe.

    Raises:
        DataError: the data set cannot be loaded, a split is missing, or `data.validation_size` is given although there
            is a validation split.
    """
    name, config = str(data.dataset_name), data.dataset_config_name
    requested = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    folder = _folder(name, config, columns) if Path(name).expanduser().is_dir() else None
    if folder is None and name.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
        # `datasets` would read all files of this format in the working directory, including pickles.
        raise DataError(
            f"data.dataset_name '{name}' is a file format, not a data set; give the file as data.train_file"
        )
    if _may_hold_out(data):
        with _report_load_errors(name):
            splits = list(folder.files) if folder else datasets.get_dataset_split_names(name, config)
        if data.validation_split not in splits:
            del requested["validation"]
        elif data.validation_size != "auto":
            raise DataError(
                f"data.validation_size holds out training rows, but {name} has a split '{data.validation_split}'; "
                "remove validation_size to use that split, or set data.validation_split: null"
            )
    expressions = {split: expression for split, expression in requested.items() if expression is not None}
    if folder:
        return {split: _from_folder(folder, expression, columns) for split, expression in expressions.items()}
    return {split: _from_library(name, config, expression, columns) for split, expression in expressions.items()}


def _may_hold_out(data: DataSection) -> bool:
    """Return whether rows are held out if the data set has no validation split of the recipe's name.

    With `validation_size: auto`, a name other than the default is that of a split that must exist.
    """
    if data.validation_size == "auto":
        return bool(data.validation_split == DataSection.model_fields["validation_split"].default)
    return bool(data.validation_size and data.validation_split)


@contextmanager
def _report_load_errors(name: str) -> Iterator[None]:
    """Convert an error of `datasets` to one message about the data set.

    Raises:
        DataError: loading failed in the block.
    """
    try:
        yield
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        root = _first_cause(error)
        if cannot_write_cache := cache_error(root):
            raise cannot_write_cache from error
        reason = " ".join(str(root).split()).rstrip(".")
        raise DataError(
            f"data.dataset_name: cannot load {name}: {reason}; correct the name, go online, "
            "give local files as data.train_file and data.validation_file, or give the names of its splits "
            "(data.train_split, data.validation_split, data.test_split; null for none)"
        ) from error


def _first_cause(error: BaseException) -> BaseException:
    """Return the error from which this one was raised, at the start of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _folder(name: str, config: str | None, columns: Sequence[Column]) -> _Folder | None:
    """Return the contents of a folder, or None if `datasets` has to read it (Arrow files, text files)."""
    with _report_load_errors(name):
        builder = datasets.load_dataset_builder(str(Path(name).expanduser()), config)
        files = {str(split): [Path(file) for file in listed] for split, listed in builder.config.data_files.items()}
    if builder.name not in _BUILDERS:
        return None
    for file in chain.from_iterable(files.values()):
        if file.suffix.lower() not in FILE_TYPES:
            raise DataError(
                f"{file}: the name of a data file must end in {', '.join(FILE_TYPES)}; unpack or convert it"
            )
    features, label = builder.info.features or {}, columns[-1].name
    return _Folder(name, files, feature_names(features, label) if label in features else None)


def _from_folder(folder: _Folder, expression: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows of a split expression of `datasets`, such as `train` or `train[:10%]`."""
    where = f"{folder.name} (split {expression})"

    def read_rows(split: str) -> datasets.Dataset:
        files = folder.files[split]
        return store_rows(
            chain.from_iterable(read_file(file, columns, schema_class_names) for file in files),
            arrow_schema(columns),
            where,
        )

    if expression in folder.files:
        return RawSplit(read_rows(expression), where, class_names=_class_names(folder, [expression], columns))
    # Only the splits named in the expression are read, because others may not have these columns.
    rows = {split: read_rows(split) for split in folder.files if split in expression}
    with _report_load_errors(where):
        instruction = datasets.ReadInstruction.from_spec(expression)
        pieces = instruction.to_absolute({split: len(rows.get(split, ())) for split in folder.files})
    selected = datasets.concatenate_datasets(
        [rows[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces]
    )
    numbers = np.concatenate([np.arange(piece.from_, piece.to) + 1 for piece in pieces])
    names = _class_names(folder, [piece.splitname for piece in pieces], columns)
    return RawSplit(selected.flatten_indices(), where, numbers, names)


def _class_names(folder: _Folder, splits: Sequence[str], columns: Sequence[Column]) -> list[str] | None:
    """Return the class names in the README of the folder, or else those in a parquet file of these splits, or None."""
    files = (file for split in splits for file in folder.files[split])
    declared = (parquet_class_names(file, columns[-1].name) for file in files if file_format(file) == "parquet")
    return folder.class_names or next(filter(None, declared), None)


def _from_library(name: str, config: str | None, expression: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows of a split that `datasets` loads."""
    where = f"{name} (split {expression})"
    with _report_load_errors(where), stage(f"loading {where}"):
        rows = datasets.load_dataset(name, config, split=expression)
    return from_dataset(rows, where, columns)


def from_dataset(rows: datasets.Dataset, where: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows of a loaded data set.

    Raises:
        DataError: a column is missing, or a cell cannot be read as text.
    """
    cells = store_rows(read_dataset(rows, columns, where), arrow_schema(columns), where)
    return RawSplit(cells, where, class_names=feature_names(rows.features, columns[-1].name))
