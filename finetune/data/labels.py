"""The labels contract: ids are fixed once, from the training rows or the recipe, and hold for all splits.

N rows, C classes
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.read import RawSplit, row_list
from finetune.errors import DataError, did_you_mean

_MOST_CLASSES = 1000


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
        DataError: training has fewer than two labels, or so many that they look like numbers to predict.
    """
    if problem_type == "regression":
        return ["value"]
    if declared:
        return list(declared)
    feature = train.rows.features[column]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    found = [str(name) for name in pc.unique(_flat(_texts(train, column))).to_pylist()]
    if len(found) < 2:
        held = f"the one label '{found[0]}'" if found else "no label"
        raise DataError(f"{train.where} has {held} in column '{column}'; a classifier needs two or more")
    if len(found) > _MOST_CLASSES:
        raise DataError(
            f"{train.where} has {len(found)} different labels in '{column}'; "
            "for numbers set task.problem_type: regression, else name the labels in task.label_names"
        )
    if suggested is not None and sorted(suggested) == sorted(found):
        return list(suggested)
    return sorted(found, key=int) if all(_is_whole(name) for name in found) else sorted(found)


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None


def _texts(raw: RawSplit, column: str) -> pa.ChunkedArray:
    """Return labels as text, with the names of a ClassLabel feature put in; lists stay lists."""
    values = raw.column(column)
    feature = raw.rows.features[column]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        return _class_label_names(values, feature.names)
    inner = values.type.value_type if _is_list(values.type) else values.type
    if pa.types.is_floating(inner):
        values = values.cast(_like(values.type, pa.int64()), safe=True) if _all_whole(values) else values
    return values.cast(_like(values.type, pa.string()))


def _class_label_names(codes: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    """Return the names of a ClassLabel's codes; -1, a row without a label, stays "-1"."""
    plain = codes.combine_chunks()
    flat = pc.list_flatten(plain) if _is_list(plain.type) else plain
    table = pa.array([*names, "-1"])
    taken = table.take(pc.if_else(pc.less(flat, 0), len(names), flat))
    if _is_list(plain.type):
        taken = pa.ListArray.from_arrays(plain.offsets.cast(pa.int32()), taken)
    return pa.chunked_array([taken])


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _like(kind: pa.DataType, inner: pa.DataType) -> pa.DataType:
    return pa.list_(inner) if _is_list(kind) else inner


def _flat(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(values) if _is_list(values.type) else values


def _all_whole(values: pa.ChunkedArray) -> bool:
    flat = _flat(values)
    whole: bool = pc.all(pc.equal(pc.floor(flat), flat)).as_py()
    return whole


def encode_labels(
    raw: RawSplit, column: str, problem_type: str, names: Sequence[str], *, ids_allowed: bool = False
) -> np.ndarray:
    """Return labels as training takes them: ids (N,), 0/1 sets (N, C), or values (N,).

    A column holds names throughout; or ids throughout, if these are allowed (the recipe declares the names) and no
    name is itself a number.

    Raises:
        DataError: a row's label is none of `names` (nor an id of one), or no number in regression.
    """
    if problem_type == "regression":
        return _numbers(raw, column)
    texts = _texts(raw, column)
    if _is_list(texts.type) != (problem_type == "multi_label_classification"):
        rule = "a list of labels" if problem_type == "multi_label_classification" else "one label"
        raise DataError(f"{raw.where}: column '{column}' holds {texts.type}, but {problem_type} takes {rule} a row")
    flat = _flat(texts)
    ids = _ids(flat, names, by_id=ids_allowed and not any(_is_whole(name) for name in names))
    if problem_type == "single_label_classification":
        _refuse_unknown(raw, column, flat, ids, np.arange(len(ids)), names)
        return ids
    rows = np.repeat(np.arange(len(texts)), pc.list_value_length(texts).to_numpy())
    _refuse_unknown(raw, column, flat, ids, rows, names)
    sets = np.zeros((len(texts), len(names)), dtype=np.int64)
    np.add.at(sets, (rows, ids), 1)
    twice = np.flatnonzero((sets > 1).any(1))
    if len(twice):
        raise DataError(
            f"{raw.where} {row_list([int(row) + 1 for row in twice])}: a label is listed twice in column '{column}'; "
            "list the names or ids that apply, once each (a vector of zeros and ones is not read)"
        )
    return sets


def _ids(flat: pa.ChunkedArray, names: Sequence[str], *, by_id: bool) -> np.ndarray:
    """Return the id of each label, -1 for one that is unknown."""
    kinds = [str(kind) for kind in pc.unique(flat).to_pylist()]
    by_id = by_id and all(_is_whole(kind) for kind in kinds)
    table = {str(index) if by_id else name: index for index, name in enumerate(names)}
    if not len(flat):
        return np.zeros(0, dtype=np.int64)
    encoded = flat.combine_chunks().dictionary_encode()
    lookup = np.array([table.get(str(kind), -1) for kind in encoded.dictionary.to_pylist()], dtype=np.int64)
    ids: np.ndarray = lookup[encoded.indices.to_numpy()]
    return ids


def _refuse_unknown(
    raw: RawSplit, column: str, flat: pa.ChunkedArray, ids: np.ndarray, rows: np.ndarray, names: Sequence[str]
) -> None:
    bad = np.flatnonzero(ids < 0)
    if not len(bad):
        return
    given = str(flat[int(bad[0])].as_py())
    numbers = [int(number) + 1 for number in rows[bad]]
    if given == "-1":
        raise DataError(f"{raw.where} {row_list(numbers)}: label -1 marks rows without a label; leave the split out")
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise DataError(
        f"{raw.where} {row_list(numbers)}: label '{given}' in column '{column}' is none of the labels {shown}"
        f"{did_you_mean(given, names) or '; correct it, or add it to the training rows and task.label_names'}"
    )


def _numbers(raw: RawSplit, column: str) -> np.ndarray:
    values = raw.column(column)
    if _is_list(values.type):
        raise DataError(f"{raw.where}: column '{column}' holds lists, but regression predicts one number a row")
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.utf8_trim_whitespace(values)
    try:
        numbers = np.array(values.cast(pa.float64()).to_numpy(), dtype=np.float64)  # a copy: Arrow's own is read-only
    except pa.ArrowInvalid:
        numbers = np.array([_number(value) for value in values.to_pylist()])
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(
            f"{raw.where} {row_list([int(row) + 1 for row in bad])}: '{values[int(bad[0])].as_py()}' in column "
            f"'{column}' is no number; regression predicts numbers, so correct the row or set another task.problem_type"
        )
    return numbers


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the row numbers (from 0) to hold out: `share` of each class, and never the last row of a class.

    Raises:
        DataError: there are too few rows to hold any out.
    """
    rng, single = np.random.default_rng(seed), labels.ndim == 1 and labels.dtype.kind != "f"
    order = rng.permutation(len(labels))
    if single:
        order = order[np.argsort(labels[order], kind="stable")]
    steps = np.floor(np.arange(len(labels) + 1) * share)
    taken = steps[1:] > steps[:-1]
    taken[np.unique(labels[order], return_index=True)[1] if single else [0]] = False
    if not taken.any():
        raise DataError(
            f"data.validation_size: {share:g} of {len(labels)} training rows is no row; give more, or a file"
        )
    return np.sort(order[taken])


def refuse_unseen(raw: RawSplit, labels: np.ndarray, train_labels: np.ndarray, names: Sequence[str]) -> None:
    """Raise DataError if a split has a class (ids (N,)) of which training has no row: it cannot be learned."""
    if labels.ndim != 1:
        return
    bad = np.flatnonzero(~np.isin(labels, train_labels))
    if len(bad):
        numbers = [int(index) + 1 for index in bad]
        raise DataError(
            f"{raw.where} {row_list(numbers)}: label '{names[int(labels[bad[0]])]}' occurs in no training row, "
            "so it cannot be learned; add training rows with it or remove these rows"
        )


def label_counts(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Return label name -> rows; none for regression."""
    if labels.dtype.kind == "f":
        return {}
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
    return dict(zip(names, map(int, counts), strict=True))
