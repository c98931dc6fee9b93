"""Checks of the first rows of a recipe's data, with the functions and messages of training. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from finetune.data.cell_values import BATCH_ROWS, Column, arrow_schema, batches_from_objects
from finetune.data.file_formats import read_file
from finetune.data.holdout import held_out_share, sample_training_rows, sample_validation_rows
from finetune.data.label_name_rows import adds_label_names
from finetune.data.labels import encode_labels
from finetune.data.row_checks import checked_splits, columns_to_read
from finetune.data.rows import RawSplit
from finetune.data.split_labels import encode_split_labels
from finetune.data.text_keys import text_keys
from finetune.data.typed_rows import declared_names
from finetune.recipe.data_files import describe_files, expand_files, file_format
from finetune.recipe.data_section import DataSection

if TYPE_CHECKING:
    import datasets

MAX_JSON_BYTES = 30_000_000  # a larger json file takes too long, because it can only be read as a whole


@dataclass(frozen=True)
class _TableRows:
    """The part of `datasets.Dataset` that the checks need, for a table in memory."""

    data: pa.Table

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def select(self, positions: np.ndarray) -> _TableRows:
        return _TableRows(self.data.take(pa.array(positions)))

    def flatten_indices(self) -> _TableRows:
        return self


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a split, and whether these are all of its rows."""

    raw: RawSplit
    complete: bool


@dataclass(frozen=True)
class CheckedRows:
    """The result of the check.

    Attributes:
        notes: what was not checked.
        train: number of training rows, without those that are held out; None if not all of them were read.
        labels: number of label names, 1 for regression.
        held_out: the share of the training rows that is held out for validation, None if none is.
        has_validation: whether there are validation rows.
        validation: number of validation rows; None if it is not known.
    """

    notes: list[str]
    train: int | None = None
    labels: int = 1
    held_out: float | None = None
    has_validation: bool = False
    validation: int | None = None


def check_first_rows(
    data: DataSection, problem_type: str, declared: Sequence[str] | None, seed: int = 0
) -> CheckedRows:
    """Check the first rows of every file, or the rows in the recipe.

    Args:
        declared: the label names of the recipe.
        seed: of the rows that are held out, whose number depends on it if texts are repeated.

    Raises:
        DataError: training would stop at these rows, with the same message.
    """
    columns = columns_to_read(data, lists=problem_type == "multi_label_classification")
    declared = declared or data.label_columns
    read, incomplete, notes = {}, set[str](), list[str]()
    dataset = _first_dataset_rows(data, columns)
    if dataset is None:
        return CheckedRows([f"not checked: the rows of dataset '{data.dataset_name}'"])
    for split, (raw, complete) in dataset.items():
        read[split] = raw
        incomplete |= set() if complete else {split}
    for split, rows in _rows_in_recipe(data).items():
        where = f"data.{split}_rows"
        table = pa.Table.from_batches(batches_from_objects(iter(rows), columns, where), arrow_schema(columns))
        read[split] = _raw_split(table, where)
    for split, entries in data.local_files().items():
        files = expand_files(entries)
        if long := next(filter(_takes_long, files), None):
            notes.append(f"not checked: the rows of {long}, because a json file of this size takes long to read")
            continue
        read[split], complete = _first_rows(files, columns, data.delimiter)
        incomplete |= set() if complete else {split}
    for split in sorted(incomplete):
        notes.append(f"checked: the first {len(read[split].rows):,} rows of {read[split].source}")
    checked = checked_splits(read, data, problem_type, declared, incomplete)
    notes += [note for raw in checked.values() for note in raw.notes]
    splits = {split: FirstRows(raw, split not in incomplete) for split, raw in checked.items()}
    if "train" not in splits:
        return CheckedRows(notes)
    if splits["train"].complete:
        return _check_all_labels(splits, data, problem_type, declared, notes, seed)
    _check_first_labels(splits, data.label_column, problem_type, declared)
    return CheckedRows(notes)


def _first_dataset_rows(data: DataSection, columns: Sequence[Column]) -> dict[str, tuple[RawSplit, bool]] | None:
    """Return split name -> first rows of the data set of the recipe, and whether these are all; {} if it names none.

    None if its rows are not in a local folder, or the recipe takes a part of a split.
    """
    if data.dataset_name is None:
        return {}
    if not Path(data.dataset_name).expanduser().is_dir():
        return None
    from finetune.data.named_dataset import local_splits, requested_splits

    local, rows = local_splits(data, columns), dict[str, tuple[RawSplit, bool]]()
    expressions = {} if local is None else requested_splits(data, local)
    if local is None or any("[" in expression or "+" in expression for expression in expressions.values()):
        return None
    for split, expression in expressions.items():
        where = f"{data.dataset_name} (split {expression})"
        if expression not in local.names:
            local.select(expression, where)  # raises the error of training
        elif local.head is None:
            raw, complete = _first_rows(local.files[expression], columns, data.delimiter)
            rows[split] = replace(raw, source=where, class_names=local.class_names or raw.class_names), complete
        else:
            raw, complete = local.head(expression)
            rows[split] = replace(raw, source=where), complete
    return rows


def _takes_long(file: Path) -> bool:
    return file_format(file) == "json" and file.is_file() and file.stat().st_size > MAX_JSON_BYTES


def _rows_in_recipe(data: DataSection) -> dict[str, list[dict[str, object]]]:
    """Return split name -> the rows in the recipe."""
    rows = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    return {split: values for split, values in rows.items() if values is not None}


def _first_rows(files: Sequence[Path], columns: Sequence[Column], delimiter: str | None) -> tuple[RawSplit, bool]:
    """Return the first rows of files, and whether these are all. Of the other files, the beginning is only checked."""
    batches, starts, rows, complete = [], list[tuple[Path, int]](), 0, True
    for file in files:
        starts.append((file, rows))
        for batch in read_file(file, columns, _class_names, delimiter):
            if rows < BATCH_ROWS:
                batches.append(batch)
            rows += len(batch)
            if rows >= BATCH_ROWS:
                complete = False
                break
    names = declared_names([(file, file_format(file)) for file in files], columns, _class_names)
    raw = _raw_split(pa.Table.from_batches(batches, arrow_schema(columns)), describe_files(files), names)
    return replace(raw, files=starts if len(files) > 1 else ()), complete


def _raw_split(table: pa.Table, source: str, class_names: list[str] | None = None) -> RawSplit:
    return RawSplit(cast("datasets.Dataset", _TableRows(table)), source, class_names=class_names)


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the label names in a schema; the `datasets` library is imported only if it wrote the schema."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    from finetune.data.class_names import schema_class_names

    return schema_class_names(schema, label)


def _check_all_labels(
    splits: dict[str, FirstRows],
    data: DataSection,
    problem_type: str,
    declared: Sequence[str] | None,
    notes: list[str],
    seed: int,
) -> CheckedRows:
    """Check the labels of all training rows, and whether there are enough rows of each class, and count the rows.

    Raises:
        DataError: training would reject a label, or there are too few rows.
    """
    raw = {split: rows.raw for split, rows in splits.items()}
    names, labels = encode_split_labels(raw, data.label_column, problem_type, declared)
    train, validation = labels["train"], None
    has_validation = "validation" in raw or "validation" in data.local_files()  # a long file is not read
    if "validation" in splits and splits["validation"].complete:
        validation = len(labels["validation"])
    held_out = None if has_validation else held_out_share(data.validation_size, len(train))
    if held_out is not None:
        train_keys = text_keys(raw["train"], data.text_columns()) if data.group_equal_texts else None
        rows = sample_validation_rows(train, held_out, seed, train_keys)
        train, validation = np.delete(train, rows, axis=0), len(rows)
    if validation is not None and data.max_eval_samples:
        validation = min(validation, data.max_eval_samples)
    if data.max_train_samples and data.max_train_samples < len(train):
        train = train[sample_training_rows(train, data.max_train_samples, seed=0)]
    added = len(names) if adds_label_names(data, problem_type, names, len(train)) else 0
    has_validation = has_validation or held_out is not None
    return CheckedRows(notes, len(train) + added, len(names), held_out, has_validation, validation)


def _check_first_labels(
    splits: dict[str, FirstRows], column: str, problem_type: str, declared: Sequence[str] | None
) -> None:
    """Raise DataError for labels that training would reject, as far as this is known from some of the training rows."""
    names = declared or splits["train"].raw.class_names
    if names or problem_type == "regression":
        for rows in splits.values():
            encode_labels(rows.raw, column, problem_type, names or [], ids_allowed=names is not None)
