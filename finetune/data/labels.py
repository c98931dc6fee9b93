"""The labels contract: ids are fixed once, from the training rows or the recipe, and hold for all splits.

N rows, C classes
"""

from __future__ import annotations

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
        raise DataError(f"{train.where} has the one label '{found[0]}'; a classifier needs two or more")
    if len(found) > _MOST_CLASSES:
        raise DataError(
            f"{train.where} has {len(found)} different labels in '{column}'; "
            "for numbers set task.problem_type: regression, else name the labels in task.label_names"
        )
    if suggested is not None and sorted(suggested) == sorted(found):
        return list(suggested)
    return sorted(found, key=int) if all(_is_whole(name) for name in found) else sorted(found)


def _is_whole(text: str) -> bool:
    return text.lstrip("+-").isdigit()


def _texts(raw: RawSplit, column: str) -> pa.ChunkedArray:
    """Return labels as text, with the names of a ClassLabel feature put in; lists stay lists."""
    values = raw.column(column)
    inner = values.type.value_type if _is_list(values.type) else values.type
    if pa.types.is_floating(inner):
        values = values.cast(_like(values.type, pa.int64()), safe=True) if _all_whole(values) else values
    return values.cast(_like(values.type, pa.string()))


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


def encode_labels(raw: RawSplit, column: str, problem_type: str, names: Sequence[str]) -> np.ndarray:
    """Return labels as training takes them: ids (N,), 0/1 sets (N, C), or values (N,).

    A column holds names throughout, or ids throughout.

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
    ids = _ids(flat, names)
    if problem_type == "single_label_classification":
        _refuse_unknown(raw, column, flat, ids, np.arange(len(ids)), names)
        return ids
    rows = np.repeat(np.arange(len(texts)), pc.list_value_length(texts).to_numpy())
    _refuse_unknown(raw, column, flat, ids, rows, names)
    sets = np.zeros((len(texts), len(names)), dtype=np.int64)
    sets[rows, ids] = 1
    return sets


def _ids(flat: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return the id of each label, -1 for one that is unknown."""
    kinds = [str(kind) for kind in pc.unique(flat).to_pylist()]
    as_names = {name: index for index, name in enumerate(names)}
    as_ids = {str(index): index for index in range(len(names))}
    by_id = not any(kind in as_names for kind in kinds) and all(_is_whole(kind) for kind in kinds)
    table = as_ids if by_id else as_names
    encoded = flat.combine_chunks().dictionary_encode() if len(flat) else None
    if encoded is None:
        return np.zeros(0, dtype=np.int64)
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
    try:
        return np.asarray(values.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowInvalid:
        for number, value in enumerate(values.to_pylist(), start=1):
            try:
                float(value)
            except ValueError:
                raise DataError(
                    f"{raw.where} row {number}: '{value}' in column '{column}' is no number; "
                    "regression predicts numbers, so correct the row or set another task.problem_type"
                ) from None
        raise


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
