"""Labels: the label names, and the labels of all rows as class ids, label sets or values.

The class ids are determined once, from the recipe or the training rows, and are used for all splits. All formats
follow the same rules, because cells are already texts (see cell_values.py). An integer written as a float is that
integer: `0.0` is the label 0.

    N rows, C classes
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.rows import RawSplit
from finetune.errors import DataError, did_you_mean, shorten

_MAX_CLASSES = 1000
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_INTEGER_AS_FLOAT = re.compile(r"([+-]?[0-9]{1,300})\.0+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MAX_VALUE = float(np.finfo(np.float32).max)  # models compute in float32


def label_names(
    train: RawSplit,
    column: str,
    problem_type: str,
    declared: Sequence[str] | None,
    suggested: Sequence[str] | None = None,
) -> list[str]:
    """Return the label names in the order of their ids.

    The names are taken from the first of these sources that exists: `declared` (the recipe), a ClassLabel feature, the
    labels of the training rows. Labels of the training rows are in the order of `suggested` (the names in a checkpoint)
    if both have the same names, and are otherwise sorted: as numbers if all are integers, else as text.

    Raises:
        DataError: the training rows have fewer than two labels, or so many that they are probably numbers to predict;
            or two labels differ only in spelling.
    """
    if problem_type == "regression":
        return ["value"]
    if declared:
        return list(declared)
    if train.class_names is not None:
        return list(train.class_names)
    counts = _count_labels(train.column(column))
    _check_nan(train, column, counts)
    if all(_is_integer(_canonical_label(name)) for name in counts):
        counts = _with_canonical_labels(counts)
    names = list(counts)
    if len(names) < 2:
        only = f"only the label '{names[0]}'" if names else "no label"
        raise DataError(f"{train.source} has {only} in column '{column}'; a classifier needs at least two labels")
    if len(names) > _MAX_CLASSES:
        raise DataError(
            f"{train.source} has {len(names)} different labels in column '{column}'; to predict numbers set "
            "task.problem_type: regression, otherwise list the labels in task.label_names"
        )
    _check_minus_one(train, column, counts)
    _check_same_spelling(train, column, counts)
    if suggested is not None and sorted(suggested) == sorted(names):
        return list(suggested)
    return sorted(names, key=int) if all(_is_integer(name) for name in names) else sorted(names)


def check_training_labels(
    train: RawSplit, column: str, problem_type: str, names: Sequence[str], *, ids_allowed: bool
) -> None:
    """Raise DataError for labels that could be read, but probably mean something else.

    Two mistakes are detected: class ids that count from 1, and vectors of zeros and ones instead of lists of labels.
    """
    cells = train.column(column)
    distinct = {_canonical_label(str(label)) for label in pc.unique(_flatten(cells)).to_pylist()}
    are_ids = problem_type == "single_label_classification" and _are_class_ids(cells, names, ids_allowed=ids_allowed)
    if are_ids and not distinct & {"0", "-1"}:
        ids = ", ".join(sorted(distinct, key=int)[:10])
        raise DataError(
            f"{train.source}: column '{column}' has the ids {ids}, and no row has id 0 ({names[0]}); the ids of "
            f"task.label_names are 0 to {len(names) - 1}. Count from 0, write names, or remove '{names[0]}' "
            "from the names"
        )
    if problem_type == "multi_label_classification" and len(cells):
        lengths = pc.list_value_length(cells).to_numpy()
        if (lengths == len(names)).all() and (distinct <= {"0", "1"} or distinct <= {"false", "true"}):
            raise DataError(
                f"{train.source}: every row of column '{column}' has {len(names)} entries, one per label, and all are "
                f"{' or '.join(sorted(distinct))}: vectors of zeros and ones are not supported; give each label a "
                "column of its own (data.label_columns), or list the names or ids that apply, such as [1] or ['spam']"
            )


def encode_labels(
    raw: RawSplit, column: str, problem_type: str, names: Sequence[str], *, ids_allowed: bool = False
) -> np.ndarray:
    """Return the labels as class ids (N,), 0/1 label sets (N, C), or values (N,).

    A column contains either only names or only class ids.

    Args:
        ids_allowed: whether the cells may be class ids, because the recipe or the data set declares the names. If a
            name is an integer, cells are always read as names.

    Raises:
        DataError: a label is not one of `names` nor a class id, or is not a number in regression.
    """
    cells = raw.column(column)
    if problem_type == "regression":
        return _parse_numbers(raw, column)
    are_ids = _are_class_ids(cells, names, ids_allowed=ids_allowed)
    ids = _class_ids(raw, column, names, are_ids=are_ids)
    if problem_type == "single_label_classification":
        return ids
    sets = np.zeros((len(cells), len(names)), dtype=np.int64)
    np.add.at(sets, (_rows_of_labels(cells), ids), 1)
    twice = np.flatnonzero((sets > 1).any(1))
    if len(twice) and (are_ids or all(map(_is_integer, names))):  # a name that is listed twice is one label
        raise DataError(
            f"{raw.describe_rows(twice)}: a number is listed twice in column '{column}'; list each id that applies once"
            " (zeros and ones go into one column per label, data.label_columns)"
        )
    np.minimum(sets, 1, out=sets)
    return sets


def check_unseen_labels(raw: RawSplit, labels: np.ndarray, train_labels: np.ndarray, names: Sequence[str]) -> None:
    """Raise DataError if a split has a class without training rows; labels are class ids (N,)."""
    bad = np.flatnonzero(~np.isin(labels, train_labels))
    if len(bad):
        raise DataError(
            f"{raw.describe_rows(bad)}: label '{names[int(labels[bad[0]])]}' does not occur in the training rows, "
            "so it cannot be learned; add training rows with it, or remove these rows"
        )


def label_counts(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Return label name -> number of rows; empty for regression."""
    if labels.dtype.kind == "f":
        return {}
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
    return dict(zip(names, map(int, counts), strict=True))


def _count_labels(cells: pa.ChunkedArray) -> dict[str, int]:
    """Return label -> number of occurrences."""
    counted = pc.value_counts(_flatten(cells).combine_chunks()).to_pylist()
    return {str(item["values"]): int(item["counts"]) for item in counted}


def _with_canonical_labels(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts with `1` and `1.0` added up as the same label."""
    total = dict.fromkeys(map(_canonical_label, counts), 0)
    for name, rows in counts.items():
        total[_canonical_label(name)] += rows
    return total


def _is_integer(text: str) -> bool:
    return _INTEGER.fullmatch(text) is not None


def _canonical_label(text: str) -> str:
    """Return an integer written as a float (1.0) as an integer (1), and any other text unchanged."""
    match = _INTEGER_AS_FLOAT.fullmatch(text)
    if match is None:
        return text
    return "0" if match[1] == "-0" else match[1]


def _check_nan(train: RawSplit, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError if "nan" occurs among numbers, where it means a missing label."""
    nan_labels = [name for name in counts if name.strip().lower() == "nan"]
    other_labels = [name for name in counts if name not in nan_labels]
    if nan_labels and other_labels and all(_NUMBER.fullmatch(name) for name in other_labels):
        rows = _rows_with(train.column(column), nan_labels)
        raise DataError(
            f"{train.describe_rows(rows)}: label {nan_labels[0]!r} among numbers in column '{column}' means a missing "
            "label; give the label, or leave the cell empty and set data.drop_unlabeled: true"
        )


def _check_minus_one(train: RawSplit, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError if -1 occurs together with 0: it can be a class, or mark rows without a label."""
    if {"-1", "0"} <= set(counts) and all(_is_integer(name) and int(name) >= -1 for name in counts):
        names = ", ".join(f'"{name}"' for name in sorted(counts, key=int)[:20])
        raise DataError(
            f"{train.source}: label -1 ({_count_text(counts['-1'])}) in column '{column}' can mark rows without a "
            "label, or be a class; set data.drop_unlabeled: true to skip these rows, or "
            f"task.label_names: [{names}] to keep them"
        )


def _normalized(name: str) -> str:
    """Return a name without differences that are hard to see: case, white space, Unicode form, invisible characters."""
    plain = unicodedata.normalize("NFKC", name)
    return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cf").casefold().split())


def _check_same_spelling(train: RawSplit, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError if two labels differ only in case, spaces or Unicode form."""
    first: dict[str, str] = {}
    for name in counts:
        other = first.setdefault(_normalized(name), name)
        if other != name:
            both = " and ".join(f"{shorten(each, 60)!a} ({_count_text(counts[each])})" for each in (other, name))
            raise DataError(
                f"{train.source}: labels {both} in column '{column}' differ only in case, spaces or Unicode form; use "
                "one spelling, or list both in task.label_names if they are different labels"
            )


def _count_text(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _are_class_ids(cells: pa.ChunkedArray, names: Sequence[str], *, ids_allowed: bool) -> bool:
    """Return whether the cells are class ids, not label names."""
    if not ids_allowed or any(_is_integer(_canonical_label(name)) for name in names):
        return False
    return all(_is_integer(_canonical_label(str(label))) for label in pc.unique(_flatten(cells)).to_pylist())


def _class_ids(raw: RawSplit, column: str, names: Sequence[str], *, are_ids: bool) -> np.ndarray:
    """Return the class id of each label, in the order of the rows; `are_ids`: the cells are class ids, not names."""
    flat = _flatten(raw.column(column))
    if not len(flat):
        return np.zeros(0, dtype=np.int64)
    exact = {str(index) if are_ids else name: index for index, name in enumerate(names)}
    id_of = exact if are_ids else {_canonical_label(name): index for name, index in exact.items()} | exact
    encoded = flat.combine_chunks().dictionary_encode()
    distinct = [str(label) for label in encoded.dictionary.to_pylist()]
    lookup = np.array([id_of.get(label, id_of.get(_canonical_label(label), -1)) for label in distinct], dtype=np.int64)
    ids: np.ndarray = lookup[encoded.indices.to_numpy()]
    unknown = np.flatnonzero(ids < 0)
    if len(unknown):
        rows = np.unique(_rows_of_labels(raw.column(column))[unknown])
        message = _unknown_label_message(str(flat[int(unknown[0])].as_py()), column, names, are_ids=are_ids)
        raise DataError(f"{raw.describe_rows(rows)}: {message}")
    return ids


def _unknown_label_message(given: str, column: str, names: Sequence[str], *, are_ids: bool) -> str:
    """Return the message for a label that is not one of the names."""
    shown = ", ".join(shorten(name, 60) for name in names[:10]) + (", ..." if len(names) > 10 else "")
    last, given = len(names) - 1, shorten(given, 80)
    ids = f"ids are 0 ({names[0]}) to {last} ({names[last]})"
    if _canonical_label(given) == "-1":
        unlabeled = "label -1 marks rows without a label; remove these rows, or set data.drop_unlabeled: true"
        return f"{unlabeled}; if -1 is a class, write label names in column '{column}': {ids}" if are_ids else unlabeled
    if are_ids:
        return f"label '{given}' in column '{column}' is not one of the labels {shown}, nor a class id: {ids}"
    near = next((name for name in names if _normalized(name) == _normalized(given)), None)
    if near is not None:
        fix = f"; {given!a} differs from {near!a} only in case, spaces or Unicode form: write {near!a}"
    else:
        fix = did_you_mean(given, names) or "; correct it, or add it to the training rows and to task.label_names"
    return f"label '{given}' in column '{column}' is not one of the labels {shown}{fix}"


def _parse_numbers(raw: RawSplit, column: str) -> np.ndarray:
    """Return the values of a regression, (N,)."""
    cells = pc.utf8_trim_whitespace(raw.column(column))
    try:
        # np.array copies the values, because Arrow arrays are read-only.
        numbers = np.array(cells.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowInvalid:
        numbers = np.array([float(text) if _NUMBER.fullmatch(text) else np.nan for text in cells.to_pylist()])
    bad = np.flatnonzero(~(np.abs(numbers) <= _MAX_VALUE))
    if len(bad):
        raise DataError(
            f"{raw.describe_rows(bad)}: '{cells[int(bad[0])].as_py()}' in column '{column}' is not a number, or "
            f"exceeds {_MAX_VALUE:.3g}; regression needs numbers such as 1.5: correct the row, or set another "
            "task.problem_type"
        )
    return numbers


def _rows_with(cells: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return the positions of the rows that have any of the labels."""
    matches = np.flatnonzero(pc.is_in(_flatten(cells), value_set=pa.array(names)).to_numpy(zero_copy_only=False))
    return np.unique(_rows_of_labels(cells)[matches])


def _rows_of_labels(cells: pa.ChunkedArray) -> np.ndarray:
    """Return for each label the position of its row; a row with several labels occurs several times."""
    rows = np.arange(len(cells))
    return np.repeat(rows, pc.list_value_length(cells).to_numpy()) if pa.types.is_list(cells.type) else rows


def _flatten(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the labels of all rows in one array."""
    return pc.list_flatten(cells) if pa.types.is_list(cells.type) else cells
