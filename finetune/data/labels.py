"""The labels contract: ids are fixed once, from the training rows or the recipe, and hold for all splits.

Cells are texts by now (see cells.py), so all formats meet the same rules here. A whole float is the id it stands for:
`0.0` is the label 0.

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

_MOST_CLASSES = 1000
_WHOLE = re.compile(r"[+-]?[0-9]{1,300}")
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]{1,300})\.0+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST = float(np.finfo(np.float32).max)  # what a model computes with


def label_names(
    train: RawSplit,
    column: str,
    problem_type: str,
    declared: Sequence[str] | None,
    suggested: Sequence[str] | None = None,
) -> list[str]:
    """Return the label names in the order of their ids.

    Declared names win; then the names of a ClassLabel feature; then what the training rows hold, in the order
    of `suggested` (a checkpoint's own names) where these are the same, else sorted (by number where all are whole
    numbers).

    Raises:
        DataError: training has fewer than two labels, or so many that they look like numbers to predict; or two
            labels differ in their spelling alone.
    """
    if problem_type == "regression":
        return ["value"]
    if declared:
        return list(declared)
    if train.class_names is not None:
        return list(train.class_names)
    counts = _counts(train.column(column))
    _refuse_nan(train, column, counts)
    if all(_is_whole(_id_text(name)) for name in counts):
        counts = _summed([(_id_text(name), rows) for name, rows in counts.items()])
    found = list(counts)
    if len(found) < 2:
        held = f"the one label '{found[0]}'" if found else "no label"
        raise DataError(f"{train.where} has {held} in column '{column}'; a classifier needs two or more")
    if len(found) > _MOST_CLASSES:
        raise DataError(
            f"{train.where} has {len(found)} different labels in '{column}'; "
            "for numbers set task.problem_type: regression, else name the labels in task.label_names"
        )
    _refuse_minus_one(train, column, counts)
    _refuse_same_spelling(train, column, counts)
    if suggested is not None and sorted(suggested) == sorted(found):
        return list(suggested)
    return sorted(found, key=int) if all(_is_whole(name) for name in found) else sorted(found)


def _counts(cells: pa.ChunkedArray) -> dict[str, int]:
    """Return label -> how often it occurs."""
    counted = pc.value_counts(_flat(cells).combine_chunks()).to_pylist()
    return {str(item["values"]): int(item["counts"]) for item in counted}


def _summed(counts: Sequence[tuple[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, rows in counts:
        total[name] = total.get(name, 0) + rows
    return total


def _is_whole(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None


def _id_text(text: str) -> str:
    """Return a whole float as the whole number it stands for, any other text as it is."""
    match = _WHOLE_FLOAT.fullmatch(text)
    return text if match is None else match[1].replace("-0", "0") if match[1] in ("-0", "+0") else match[1]


def _folded(name: str) -> str:
    """Return a name without what cannot be seen, or is seen late: case, spaces, and the form of its Unicode."""
    plain = unicodedata.normalize("NFKC", name)
    return " ".join("".join(c for c in plain if unicodedata.category(c) != "Cf").casefold().split())


def _refuse_same_spelling(train: RawSplit, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError if two labels differ only in case, spaces or Unicode form."""
    first: dict[str, str] = {}
    for name in counts:
        other = first.setdefault(_folded(name), name)
        if other != name:
            both = " and ".join(f"{shorten(each, 60)!a} ({_times(counts[each])})" for each in (other, name))
            raise DataError(
                f"{train.where}: labels {both} in column '{column}' differ only in case, spaces or Unicode form; write "
                "them in one way, or name both in task.label_names if they are two"
            )


def _times(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _refuse_nan(train: RawSplit, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError if "nan" stands among numbers, where it marks a label that is missing."""
    marks = [name for name in counts if name.strip().lower() == "nan"]
    if marks and len(marks) < len(counts) and all(_NUMBER.fullmatch(name) for name in counts if name not in marks):
        rows = _rows_with(train.column(column), marks)
        raise DataError(
            f"{train.named(rows)}: label {marks[0]!r} among numbers in column '{column}' marks a missing label; give "
            "the label, or leave the cell empty and set data.drop_unlabeled: true"
        )


def _refuse_minus_one(train: RawSplit, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError if -1 stands beside 0 and other whole numbers, which says either a class or no label."""
    if {"-1", "0"} <= set(counts) and all(_is_whole(name) and int(name) >= -1 for name in counts):
        names = ", ".join(f'"{name}"' for name in sorted(counts, key=int)[:20])
        raise DataError(
            f"{train.where}: label -1 ({_times(counts['-1'])}) in column '{column}' may mark rows without a label, or "
            f"be a class; set data.drop_unlabeled: true to leave them out, or task.label_names: [{names}] to keep them"
        )


def _rows_with(cells: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return the positions of the rows that have one of the labels."""
    hit = np.flatnonzero(pc.is_in(_flat(cells), value_set=pa.array(names)).to_numpy(zero_copy_only=False))
    return np.unique(_rows_of_labels(cells)[hit])


def _rows_of_labels(cells: pa.ChunkedArray) -> np.ndarray:
    """Return the position of the row that each label stands in."""
    rows = np.arange(len(cells))
    return np.repeat(rows, pc.list_value_length(cells).to_numpy()) if pa.types.is_list(cells.type) else rows


def _flat(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(cells) if pa.types.is_list(cells.type) else cells


def _by_id(cells: pa.ChunkedArray, names: Sequence[str], *, ids_allowed: bool) -> bool:
    """Return whether the cells are ids of the names, rather than the names themselves."""
    if not ids_allowed or any(_is_whole(_id_text(name)) for name in names):
        return False
    return all(_is_whole(_id_text(str(kind))) for kind in pc.unique(_flat(cells)).to_pylist())


def encode_labels(
    raw: RawSplit, column: str, problem_type: str, names: Sequence[str], *, ids_allowed: bool = False
) -> np.ndarray:
    """Return labels as training takes them: ids (N,), 0/1 sets (N, C), or values (N,).

    A column holds names throughout; or ids throughout, if these are allowed (the recipe or the data set declares the
    names) and no name is itself a number.

    Raises:
        DataError: a row's label is none of `names` (nor an id of one), or no number in regression.
    """
    cells = raw.column(column)
    if problem_type == "regression":
        return _numbers(raw, column)
    ids = _ids(raw, column, names, by_id=_by_id(cells, names, ids_allowed=ids_allowed))
    if problem_type == "single_label_classification":
        return ids
    sets = np.zeros((len(cells), len(names)), dtype=np.int64)
    np.add.at(sets, (_rows_of_labels(cells), ids), 1)
    twice = np.flatnonzero((sets > 1).any(1))
    if len(twice):
        raise DataError(
            f"{raw.named(twice)}: a label is listed twice in column '{column}'; "
            "list the names or ids that apply, once each (a vector of zeros and ones is not read)"
        )
    return sets


def _ids(raw: RawSplit, column: str, names: Sequence[str], *, by_id: bool) -> np.ndarray:
    """Return the id of each label, in the order of the rows."""
    flat = _flat(raw.column(column))
    if not len(flat):
        return np.zeros(0, dtype=np.int64)
    table = {str(index) if by_id else _id_text(name): index for index, name in enumerate(names)}
    table |= {} if by_id else {name: index for index, name in enumerate(names)}
    encoded = flat.combine_chunks().dictionary_encode()
    kinds = [str(kind) for kind in encoded.dictionary.to_pylist()]
    lookup = np.array([table.get(kind, table.get(_id_text(kind), -1)) for kind in kinds], dtype=np.int64)
    ids: np.ndarray = lookup[encoded.indices.to_numpy()]
    bad = np.flatnonzero(ids < 0)
    if len(bad):
        rows = np.unique(_rows_of_labels(raw.column(column))[bad])
        raise DataError(f"{raw.named(rows)}: {_unknown(str(flat[int(bad[0])].as_py()), column, names, by_id=by_id)}")
    return ids


def _unknown(given: str, column: str, names: Sequence[str], *, by_id: bool) -> str:
    """Say what is wrong with a label that is none of the names."""
    shown = ", ".join(shorten(name, 60) for name in names[:10]) + (", ..." if len(names) > 10 else "")
    last, given = len(names) - 1, shorten(given, 80)
    ids = f"ids run from 0 ({names[0]}) to {last} ({names[last]})"
    if _id_text(given) == "-1":
        marks = "label -1 marks rows without a label; remove these rows, or set data.drop_unlabeled: true"
        return f"{marks}; if -1 is a class in column '{column}', write names, since {ids}" if by_id else marks
    if by_id:
        return f"label '{given}' in column '{column}' is none of the labels {shown} and no id of one: {ids}"
    near = next((name for name in names if _folded(name) == _folded(given)), None)
    if near is not None:
        repair = f"; {given!a} differs from {near!a} only in case, spaces or Unicode form: write {near!a}"
    else:
        repair = did_you_mean(given, names) or "; correct it, or add it to the training rows and task.label_names"
    return f"label '{given}' in column '{column}' is none of the labels {shown}{repair}"


def check_training_labels(
    train: RawSplit, column: str, problem_type: str, names: Sequence[str], *, ids_allowed: bool
) -> None:
    """Raise DataError for labels that could be read, but hardly as they are meant.

    These are ids that count from 1, and vectors of zeros and ones where lists of labels belong.
    """
    cells = train.column(column)
    kinds = {_id_text(str(kind)) for kind in pc.unique(_flat(cells)).to_pylist()}
    by_id = problem_type == "single_label_classification" and _by_id(cells, names, ids_allowed=ids_allowed)
    if by_id and not kinds & {"0", "-1"}:
        ids = ", ".join(sorted(kinds, key=int)[:10])
        raise DataError(
            f"{train.where}: column '{column}' holds the ids {ids}, and no row has id 0 ({names[0]}); ids of "
            f"task.label_names run from 0 to {len(names) - 1}. Count from 0, write names, or remove '{names[0]}' "
            "from the names"
        )
    if problem_type == "multi_label_classification" and len(cells):
        lengths = pc.list_value_length(cells).to_numpy()
        if (lengths == len(names)).all() and (kinds <= {"0", "1"} or kinds <= {"false", "true"}):
            raise DataError(
                f"{train.where}: every row of column '{column}' has {len(names)} entries, as many as there are labels, "
                f"all of them {' or '.join(sorted(kinds))}: vectors of zeros and ones are not read; list the names or "
                "ids that apply, [1] or ['spam'] for [0, 1]"
            )


def _numbers(raw: RawSplit, column: str) -> np.ndarray:
    cells = pc.utf8_trim_whitespace(raw.column(column))
    try:
        numbers = np.array(cells.cast(pa.float64()).to_numpy(), dtype=np.float64)  # a copy: Arrow's own is read-only
    except pa.ArrowInvalid:
        numbers = np.array([float(text) if _NUMBER.fullmatch(text) else np.nan for text in cells.to_pylist()])
    bad = np.flatnonzero(~(np.abs(numbers) <= _LARGEST))
    if len(bad):
        raise DataError(
            f"{raw.named(bad)}: '{cells[int(bad[0])].as_py()}' in column '{column}' is not a number, or exceeds "
            f"{_LARGEST:.3g}; regression predicts numbers such as 1.5, so correct the row or set another "
            "task.problem_type"
        )
    return numbers


def refuse_unseen(raw: RawSplit, labels: np.ndarray, train_labels: np.ndarray, names: Sequence[str]) -> None:
    """Raise DataError if a split has a class (ids (N,)) of which training has no row: it cannot be learned."""
    bad = np.flatnonzero(~np.isin(labels, train_labels))
    if len(bad):
        raise DataError(
            f"{raw.named(bad)}: label '{names[int(labels[bad[0]])]}' occurs in no training row, "
            "so it cannot be learned; add training rows with it or remove these rows"
        )


def label_counts(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Return label name -> rows; none for regression."""
    if labels.dtype.kind == "f":
        return {}
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
    return dict(zip(names, map(int, counts), strict=True))
