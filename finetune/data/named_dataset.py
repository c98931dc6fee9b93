"""Reading `data.dataset_name`: a data set on the hub, a folder of data files, or one that `save_to_disk` wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import datasets
import numpy as np

from finetune.data.cell_values import BATCH_ROWS, Column, arrow_schema
from finetune.data.class_names import feature_names, read_dataset
from finetune.data.file_rows import read_files
from finetune.data.row_cache import cache_error, store_rows
from finetune.data.rows import RawSplit
from finetune.data.typed_rows import label_column
from finetune.errors import DataError
from finetune.progress import stage
from finetune.recipe.data_files import ENDINGS, is_data_file
from finetune.recipe.data_section import DataSection

# `datasets` only lists the files of these builders; this package reads them.
_BUILDERS = ("csv", "json", "parquet", "arrow")


@dataclass(frozen=True)
class NamedSplits:
    """The splits of a data set: their names, and a function that returns the rows of one.

    Attributes:
        files: the files of each split, if it consists of files that this package reads.
        class_names: the label names that the folder declares.
        head: returns the first rows of a split, and whether these are all; None: it has `files`.
    """

    names: Sequence[str]
    read: Callable[[str], RawSplit]
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    class_names: list[str] | None = None
    head: Callable[[str], tuple[RawSplit, bool]] | None = None

    def select(self, expression: str, where: str) -> RawSplit:
        """Return the rows of a split expression of `datasets`, such as `train` or `train[:10%]`."""
        if expression in self.names:
            return replace(self.read(expression), source=where)
        # Only the splits named in the expression are read, because others may not have these columns.
        read = {split: self.read(split) for split in self.names if split in expression}
        with _report_load_errors(where):
            sizes = {split: len(read[split].rows) if split in read else 0 for split in self.names}
            pieces = datasets.ReadInstruction.from_spec(expression).to_absolute(sizes)
        parts = [read[piece.splitname].select(np.arange(piece.from_, piece.to)) for piece in pieces]
        if len(parts) == 1:
            return replace(parts[0], source=where)
        rows = datasets.concatenate_datasets([part.rows for part in parts])
        numbers = np.concatenate([part.row_numbers() for part in parts])
        return RawSplit(rows, where, numbers, next(filter(None, (part.class_names for part in parts)), None))


def read_named(data: DataSection, columns: Sequence[Column]) -> dict[str, RawSplit]:
    """Return split name -> rows of the data set in the recipe.

    Raises:
        DataError: the data set cannot be loaded, a split is missing, or `data.validation_size` is given although there
            is a validation split.
    """
    name = str(data.dataset_name)
    local = local_splits(data, columns)
    if local is None and name.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
        # `datasets` would read all files of this format in the working directory, including pickles.
        raise DataError(
            f"data.dataset_name '{name}' is a file format, not a data set; give the file as data.train_file"
        )
    expressions = requested_splits(data, local)
    if local:
        return {split: local.select(part, f"{name} (split {part})") for split, part in expressions.items()}
    return {split: _from_library(data, part, columns) for split, part in expressions.items()}


def requested_splits(data: DataSection, local: NamedSplits | None) -> dict[str, str]:
    """Return split name -> split expression; without the validation split if rows are held out instead."""
    requested = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    if _may_hold_out(data):
        name = str(data.dataset_name)
        with _report_load_errors(name):
            names = local.names if local else _hub_split_names(data)
        if data.validation_split not in names:
            del requested["validation"]
        elif data.validation_size != "auto":
            raise DataError(
                f"data.validation_size holds out training rows, but {name} has a split '{data.validation_split}'; "
                "remove validation_size to use that split, or set data.validation_split: null"
            )
    return {split: expression for split, expression in requested.items() if expression is not None}


def _hub_split_names(data: DataSection) -> list[str]:
    names: list[str] = datasets.get_dataset_split_names(
        data.dataset_name, data.dataset_config_name, revision=data.dataset_revision
    )
    return names


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


def local_splits(data: DataSection, columns: Sequence[Column]) -> NamedSplits | None:
    """Return the splits of a local folder, or None for a name on the hub or a folder that only `datasets` can read.

    Raises:
        DataError: the folder cannot be read, or has a file of another format.
    """
    path = Path(str(data.dataset_name)).expanduser()
    if not path.is_dir():
        return None
    if data.dataset_revision is not None:
        raise DataError(f"data.dataset_revision is for a data set on the hub, but {path} is a folder; remove it")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_splits(path, columns)
    with _report_load_errors(str(data.dataset_name)):
        builder = datasets.load_dataset_builder(str(path), data.dataset_config_name)
        files = {str(split): [Path(file) for file in listed] for split, listed in builder.config.data_files.items()}
    if builder.name not in _BUILDERS:
        return None
    for file in chain.from_iterable(files.values()):
        if not is_data_file(file):
            raise DataError(f"{file}: the name of a data file must end in {ENDINGS}; convert it")
    features, label = builder.info.features or {}, label_column(columns)
    declared = feature_names(features, label) if label and label in features else None

    def read(split: str) -> RawSplit:
        rows = read_files(files[split], columns, data.delimiter)
        return replace(rows, class_names=declared or rows.class_names)

    return NamedSplits(list(files), read, files, declared)


def _saved_splits(folder: Path, columns: Sequence[Column]) -> NamedSplits:
    """Return the splits of a folder written by `save_to_disk`; a single data set is the split `train`."""
    with _report_load_errors(str(folder)):
        saved = datasets.load_from_disk(str(folder))
    tables = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    named = {str(split): table for split, table in tables.items()}

    def head(split: str) -> tuple[RawSplit, bool]:
        rows = named[split].select(range(min(BATCH_ROWS, len(named[split]))))
        return from_dataset(rows, f"{folder} (split {split})", columns), len(rows) == len(named[split])

    def read(split: str) -> RawSplit:
        return from_dataset(named[split], f"{folder} (split {split})", columns)

    return NamedSplits(list(named), read, head=head)


def _from_library(data: DataSection, expression: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows of a split that `datasets` loads."""
    where = f"{data.dataset_name} (split {expression})"
    with _report_load_errors(where), stage(f"loading {where}"):
        rows = datasets.load_dataset(
            data.dataset_name, data.dataset_config_name, split=expression, revision=data.dataset_revision
        )
    return from_dataset(rows, where, columns)


def from_dataset(rows: datasets.Dataset, where: str, columns: Sequence[Column]) -> RawSplit:
    """Return the rows of a loaded data set.

    Raises:
        DataError: a column is missing, or a cell cannot be read as text.
    """
    cells = store_rows(read_dataset(rows, columns, where), arrow_schema(columns), where)
    label = label_column(columns)
    return RawSplit(cells, where, class_names=feature_names(rows.features, label) if label else None)
