"""The texts of predicted rows in chunks, which the page decodes when a row is looked at."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from finetune.report.embedding import embedded

FIELDS = ("text", "text_1")
_CHUNK_CHARACTERS = 250_000


def text_elements(table: pa.Table) -> tuple[list[Markup], dict[str, Any]]:
    """Return the elements with the texts of a table, and their description for the page.

    A chunk is a JSON list with one text per row, for pairs two. `starts` are the positions of the first rows of the
    chunks. Without texts there are no fields.
    """
    fields = [name for name in FIELDS if name in table.column_names]
    if not fields:
        return [], {"fields": 0, "starts": [], "embedded": 0}
    elements: list[Markup] = []
    starts: list[int] = []
    chunk: list[str] = []
    size = 0
    columns = [table[name].to_pylist() for name in fields]
    for position, texts in enumerate(zip(*columns, strict=True)):
        if not chunk:
            starts.append(position)
        chunk += [text or "" for text in texts]
        size += sum(len(text or "") for text in texts)
        if size >= _CHUNK_CHARACTERS:
            elements.append(_chunk_element(len(elements), chunk))
            chunk, size = [], 0
    if chunk:
        elements.append(_chunk_element(len(elements), chunk))
    return elements, {"fields": len(fields), "starts": starts, "embedded": table.num_rows}


def _chunk_element(index: int, texts: list[str]) -> Markup:
    return embedded(f"rows-text-{index}", json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode())
