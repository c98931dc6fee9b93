"""The separator of a csv file: a comma, unless its header shows another one."""

from __future__ import annotations

import csv
from collections.abc import Sequence

DELIMITERS = (",", ";", "\t", "|")


def find_delimiter(head: Sequence[str], names: Sequence[str]) -> str:
    """Return the separator of a file.

    The comma comes first: another separator is used only if the columns are in the header with that one and not with a
    comma, or if the header has no comma at all.

    Args:
        head: the first lines, with their line breaks.
        names: the columns that are read; none if all are.
    """
    headers = {delimiter: _header(head, delimiter) for delimiter in DELIMITERS}
    fits = [delimiter for delimiter, cells in headers.items() if len(cells) > 1 and set(names) <= set(cells)]
    if fits:
        return fits[0]
    if len(headers[","]) > 1:
        return ","
    return max(DELIMITERS, key=lambda delimiter: len(headers[delimiter]))  # the first of equals: the comma


def _header(head: Sequence[str], delimiter: str) -> list[str]:
    """Return the cells of the header that have a text."""
    try:
        cells = next(filter(None, csv.reader(head, delimiter=delimiter, strict=True)), [])
    except csv.Error:
        return []
    return [cell for cell in cells if cell.strip()]
