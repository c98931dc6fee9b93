"""The texts of predicted rows in chunks, which the page decodes when a row is looked at.

N rows
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from finetune.report.embedding import embedded

FIELDS = ("text", "text_1")
_CHUNK_CHARACTERS = 250_000
_PRIORITY_SHARE = 0.75  # of the bytes, at most, for the rows that come first
_SAMPLE_ROWS = 10_000  # to measure how well the texts can be compressed
_ROW_BYTES = 4  # quotes, comma


@dataclass(frozen=True)
class RowTexts:
    """The elements with texts, their description for the page, and which rows they contain, (N,)."""

    elements: list[Markup]
    manifest: dict[str, object]
    contained: np.ndarray


def text_elements(table: pa.Table, first: np.ndarray, max_bytes: int) -> RowTexts:
    """Return the elements with the texts of a table; those of `first` and of random other rows if there are too many.

    A chunk is a JSON list with one text per row, for pairs two. `starts` are the positions of the first rows of the
    chunks among the rows with texts. Without texts there are no fields.

    Args:
        first: which rows come first, (N,).
        max_bytes: of all texts, compressed.
    """
    fields = [name for name in FIELDS if name in table.column_names]
    contained = _rows_within(max_bytes, table.select(fields), first) if fields else np.zeros(table.num_rows, bool)
    elements: list[Markup] = []
    starts: list[int] = []
    for start, texts in _chunks(table.select(fields).filter(pa.array(contained))) if fields else ():
        content = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        elements.append(embedded(f"rows-text-{len(elements)}", content.encode()))
        starts.append(start)
    manifest: dict[str, object] = {"fields": len(fields), "starts": starts, "embedded": int(contained.sum())}
    manifest |= {"first": int(first.sum()), "firstEmbedded": int((first & contained).sum())}
    return RowTexts(elements, manifest, contained)


def _rows_within(max_bytes: int, texts: pa.Table, first: np.ndarray) -> np.ndarray:
    """Return the rows whose compressed texts have at most about `max_bytes` together, (N,)."""
    sizes = np.full(texts.num_rows, _ROW_BYTES, np.int64)
    for column in texts.columns:
        sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    if sizes.sum() <= max_bytes:
        return np.ones(texts.num_rows, bool)
    random = np.random.default_rng(0)
    sample = np.sort(random.choice(texts.num_rows, min(_SAMPLE_ROWS, texts.num_rows), replace=False))
    compressed = gzip.compress(json.dumps(texts.take(sample).to_pydict(), ensure_ascii=False).encode())
    budget = max_bytes * sizes[sample].sum() / len(compressed)
    if sizes.sum() <= budget:
        return np.ones(texts.num_rows, bool)
    contained = np.zeros(texts.num_rows, bool)
    used = 0
    for group, limit in ((first, _PRIORITY_SHARE * budget), (~first, budget)):
        order = random.permutation(np.flatnonzero(group))
        ends = used + sizes[order].cumsum()
        contained[order[ends <= limit]] = True
        used = int(sizes[contained].sum())
    return contained


def _chunks(texts: pa.Table) -> Iterator[tuple[int, list[str]]]:
    """Yield the position of the first row and the texts of each chunk, for pairs one after the other."""
    chunk: list[str] = []
    start, size = 0, 0
    columns = [column.to_pylist() for column in texts.columns]
    for position, row in enumerate(zip(*columns, strict=True)):
        chunk += [text or "" for text in row]
        size += sum(len(text or "") for text in row)
        if size >= _CHUNK_CHARACTERS:
            yield start, chunk
            chunk, start, size = [], position + 1, 0
    if chunk:
        yield start, chunk
