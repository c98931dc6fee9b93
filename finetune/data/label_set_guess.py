"""Guesses about sets of labels in a data file: cells such as `a;b`, and columns with 0 and 1. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from finetune.data.label_sets import choose_separator, is_list_text, split_labels
from finetune.data.preview import Preview, PreviewColumn

_FLAGS = {"0", "1", "true", "false"}


def separator_of_sets(column: PreviewColumn) -> str | None:
    """Return the separator of several labels in the cells of a column, or None if it seems to have one label per cell.

    Every name must occur in more than one value, so that a comma in a name does not split it.
    """
    for separator in (";", "|", ","):
        names = {text: split(text, separator) for text in column.counts}
        joined = [text for text in names if len(names[text]) > 1]
        values_with = Counter(name for text in names for name in set(names[text]))
        if len(joined) > 1 and all(values_with[name] > 1 for text in joined for name in names[text]):
            return separator
    return None


def chosen_separator(column: PreviewColumn) -> str | None:
    """Return the separator of a column that has sets of labels, as training chooses it."""
    return choose_separator([text for text in column.counts if not is_list_text(text)], None)


def has_written_lists(column: PreviewColumn) -> bool:
    """Return whether every value of a text column is a list, such as ["a", "b"]."""
    return column.is_plain and all(map(is_list_text, column.counts))


def flag_columns(columns: Sequence[PreviewColumn]) -> list[str]:
    """Return the names of the columns that have both 0 and 1, or false and true, and nothing else."""
    return [
        column.name
        for column in columns
        if column.is_plain and len(column.counts) == 2 and {text.lower() for text in column.counts} <= _FLAGS
    ]


def split(text: str, separator: str | None) -> list[str]:
    """Return the labels in a cell; a text that looks like a list and is none is one label."""
    try:
        return [str(label) for label in split_labels(text, separator)]
    except ValueError:
        return [text]


def with_sets(preview: Preview, label: str, label_columns: Sequence[str], separator: str | None) -> Preview:
    """Return the preview with the labels of each row as a list in the column `label`.

    Args:
        label_columns: the columns with 0 and 1, one per label; empty: the cells of `label` are split.
    """
    if label_columns:
        flags = [preview.columns[name] for name in label_columns]
        rows = zip(*([_is_set(value) for value in column.values] for column in flags), strict=True)
        values: list[object] = [
            [name for name, is_set in zip(label_columns, row, strict=True) if is_set] for row in rows
        ]
    else:
        values = [
            split(value, separator) if isinstance(value, str) else value for value in preview.columns[label].values
        ]
    return replace(preview, columns={**preview.columns, label: PreviewColumn(label, values)})


def _is_set(value: object) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true")
