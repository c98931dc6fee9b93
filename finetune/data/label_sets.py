"""Label sets of multi_label_classification: from lists, from cells such as `a;b`, or from one column per label.

While rows are read, the labels of a row are one text: a list is written as JSON (see cell_values.py). When all splits
are read, these texts become lists of names here.

    N rows, C label columns
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.label_cells import HOW_TO_WRITE_SETS
from finetune.data.rows import RawSplit
from finetune.errors import DataError, shorten
from finetune.recipe.data_section import DataSection

SEPARATORS = (";", "|", ",")  # of labels in one cell
_ON, _OFF = ("1", "1.0", "true"), ("0", "0.0", "false")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_PYTHON_ITEM = re.compile(rf"{_QUOTED}|[\w.+-]+", re.DOTALL)
_PYTHON_LIST = re.compile(
    rf"\[\s*(?:{_PYTHON_ITEM.pattern})(?:\s*,\s*(?:{_PYTHON_ITEM.pattern}))*\s*,?\s*\]", re.DOTALL
)
_LISTS = pa.list_(pa.string())


def with_label_sets(
    splits: Mapping[str, RawSplit], data: DataSection, declared: Sequence[str] | None, *, complete: bool = True
) -> dict[str, RawSplit]:
    """Return the splits with the label column as lists of names; null where a row has no label.

    An empty list and a cell with an empty text mean that no label applies; with `data.drop_unlabeled`, an empty text is
    a row without a label, like null.

    Args:
        declared: the label names of the recipe, which decide how a cell is split.
        complete: whether these are all rows.

    Raises:
        DataError: a cell cannot be read as a set of labels; or no cell of the training rows has several labels.
    """
    if data.label_columns:
        return {split: _from_columns(raw, data) for split, raw in splits.items()}
    delimiter, note = data.label_delimiter, ""
    for split in ("train", "validation", "test") if delimiter == "auto" else ():  # until one has cells to split
        if split in splits and not note:
            delimiter, note = _detect_delimiter(
                splits[split], data.label_column, declared, several=complete and split == "train"
            )
    read = {split: _from_texts(raw, data, delimiter) for split, raw in splits.items()}
    first = next(iter(read), "")
    return {
        split: replace(raw, notes=(note, *raw.notes)) if note and split == first else raw for split, raw in read.items()
    }


def split_labels(text: str, delimiter: str | None) -> list[str | None]:
    """Return the labels in a cell: a JSON or Python list, or names with a separator, without spaces around them.

    Args:
        delimiter: None: a text that is no list is one name, as it is written.

    Raises:
        ValueError: the text begins and ends like a list, but is none.
    """
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        return _listed_labels(stripped)
    if not stripped:
        return []
    return [text] if delimiter is None else [part for each in text.split(delimiter) if (part := each.strip())]


def choose_separator(cells: Sequence[str], names: Sequence[str] | None) -> str | None:
    """Return the separator of label sets in cells that are no lists, or None if no cell has one.

    If the names are known, it is the one with which the most cells consist of these names, and a cell that is itself a
    name is not split. Otherwise it is the one that leaves the fewest different names; of equals, the semicolon.
    """
    options = [sign for sign in SEPARATORS if any(sign in cell for cell in cells)]
    if names is None:
        return min(options, key=lambda sign: len(set(_all_names(cells, sign))), default=None)
    known = {*names, *map(str, range(len(names)))}

    def unknown_cells(sign: str | None) -> int:
        return sum(not known.issuperset(_all_names([cell], sign)) for cell in cells)

    return min([*options, None], key=unknown_cells)


def is_list_text(text: str) -> bool:
    """Return whether a text begins and ends like a list."""
    stripped = text.strip()
    return stripped.startswith("[") and stripped.endswith("]")


def _all_names(cells: Sequence[str], sign: str | None) -> Iterator[str]:
    return (str(name) for cell in cells for name in split_labels(cell, sign))


def _detect_delimiter(
    raw: RawSplit, column: str, declared: Sequence[str] | None, *, several: bool
) -> tuple[str | None, str]:
    """Return the separator of the label column, and a note that says what was chosen.

    Args:
        several: whether a row must have several labels, unless the names are known.
    """
    texts = {text for chunk in raw.rows.data[column].chunks for text in chunk.unique().to_pylist() if text}
    cells = sorted(text for text in texts if text.strip() and not is_list_text(text))
    delimiter = choose_separator(cells, declared)
    if delimiter is None:
        if several and cells and len(cells) == len(texts) and declared is None:
            raise DataError(
                f"{raw.source}: every row has one label in column '{column}' (data.label_column), but "
                f"multi_label_classification is for several; {HOW_TO_WRITE_SETS}. If each row has one label, set "
                "task.problem_type: single_label_classification"
            )
        return None, ""
    example = next(cell for cell in cells if delimiter in cell)
    names = " and ".join(f"'{name}'" for name in split_labels(example, delimiter))
    return delimiter, (
        f"labels: cells of column '{column}' are split at '{delimiter}': '{shorten(example, 60)}' is "
        f"{shorten(names, 80)} (data.label_delimiter; null does not split them)"
    )


def _from_texts(raw: RawSplit, data: DataSection, delimiter: str | None) -> RawSplit:
    """Return the split with the texts of the label column as lists."""
    column, known, sets, blank = data.label_column, dict[str, int](), list[list[str | None] | None](), 0
    chunks = []
    for chunk in raw.rows.data[column].chunks:
        encoded = chunk.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        for text in texts:
            if text not in known:
                known[text] = len(sets)
                sets.append(_labels_of(text, raw, data, delimiter))
        order = pa.array([known[text] for text in texts], pa.int32())
        chunks.append(order.take(encoded.indices))
        blank += _count_blank(chunk)
    table = pa.array(sets, _LISTS)
    lists = pa.chunked_array([table.take(indices) for indices in chunks], _LISTS)
    rows = "1 row has" if blank == 1 else f"{blank:,} rows have"
    note = f"{raw.source}: {rows} an empty cell in column '{column}', which means that no label applies; "
    note += "data.drop_unlabeled: true skips them"
    notes = (note,) if blank and not data.drop_unlabeled else ()
    return replace(raw, parsed={column: lists}, notes=(*raw.notes, *notes))


def _count_blank(cells: pa.StringArray) -> int:
    return int(pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(cells)), 0)).as_py() or 0)


def _labels_of(text: str, raw: RawSplit, data: DataSection, delimiter: str | None) -> list[str | None] | None:
    """Return the labels in one cell, None for a row without a label; DataError if the cell cannot be read."""
    if not text.strip() and data.drop_unlabeled:
        return None
    try:
        return split_labels(text, delimiter)
    except ValueError as error:
        cells = raw.rows.data[data.label_column]
        rows = np.flatnonzero(pc.fill_null(pc.equal(cells, text), False).to_numpy())
        raise DataError(
            f"{raw.describe_rows(rows)}: column '{data.label_column}' (data.label_column) {error}"
        ) from error


def _listed_labels(text: str) -> list[str | None]:
    """Return the items of a JSON list, or of a Python list as pandas writes it to csv; ValueError for anything else."""
    try:
        items = _DECODER.decode(text)
    except (ValueError, RecursionError):
        if not _PYTHON_LIST.fullmatch(text):
            raise ValueError(
                f"has {shorten(text, 60)!r}, which looks like a list and is none; {HOW_TO_WRITE_SETS}"
            ) from None
        items = [ast.literal_eval(item) if item[0] in "'\"" else item for item in _PYTHON_ITEM.findall(text)]
    if any(isinstance(item, list | dict) for item in items):
        raise ValueError("contains a list in its list; it must contain texts, numbers or booleans")
    return [None if item is None else str(item).lower() if isinstance(item, bool) else str(item) for item in items]


def _from_columns(raw: RawSplit, data: DataSection) -> RawSplit:
    """Return the split with the names of the label columns that are set in each row, as its label column."""
    names = data.label_columns or []
    rows = len(raw.rows)
    on, empty = np.zeros((rows, len(names)), bool), np.zeros((rows, len(names)), bool)
    for index, name in enumerate(names):
        cells = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(raw.rows.data[name], "")))
        on[:, index], empty[:, index] = _is_in(cells, _ON), _is_in(cells, ("",))
        wrong = np.flatnonzero(~(on[:, index] | empty[:, index] | _is_in(cells, _OFF)))
        if len(wrong):
            raise DataError(
                f"{raw.describe_rows(wrong)}: column '{name}' (data.label_columns) has "
                f"'{shorten(str(raw.rows.data[name][int(wrong[0])]), 40)}'; it must have 0 or 1, or false or true"
            )
    unlabeled = empty.all(1)
    partly = np.flatnonzero(empty.any(1) & ~unlabeled)
    if len(partly):
        name = names[int(empty[partly[0]].argmax())]
        raise DataError(f"{raw.describe_rows(partly)}: column '{name}' (data.label_columns) is empty; write 0 or 1")
    ends = np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.int32)
    items = pa.array(names, pa.string()).take(pa.array(np.nonzero(on)[1]))
    lists = pa.ListArray.from_arrays(pa.array(ends), items, mask=pa.array(unlabeled))
    return replace(raw, parsed={data.label_column: pa.chunked_array([lists])})


def _is_in(cells: pa.ChunkedArray, texts: Sequence[str]) -> np.ndarray:
    return np.asarray(pc.is_in(cells, value_set=pa.array(texts)).to_numpy(), dtype=bool)
