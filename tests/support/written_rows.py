"""The same rows as files of every format and compression."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

Rows = Sequence[Mapping[str, Any]]


def _delimited(delimiter: str) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        return text.getvalue().encode()

    return write


def _plain_tsv(rows: Rows) -> bytes:
    return "\n".join("\t".join(row) for row in [list(rows[0]), *(row.values() for row in rows)]).encode()


def _arrow(rows: Rows, *, stream: bool) -> bytes:
    table = pa.Table.from_pylist([dict(row) for row in rows])
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return bytes(sink.getvalue())


def _with(write: Callable[..., Any]) -> Callable[[Rows], bytes]:
    """Return a writer of bytes for a function that writes a table to a file."""

    def write_bytes(rows: Rows) -> bytes:
        sink = pa.BufferOutputStream()
        write(pa.Table.from_pylist([dict(row) for row in rows]), sink)
        return bytes(sink.getvalue())

    return write_bytes


def _bom(write: Callable[[Rows], bytes]) -> Callable[[Rows], bytes]:
    return lambda rows: b"\xef\xbb\xbf" + write(rows)


# Name of the format -> ending of the file, and the function that writes its content.
FORMATS: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "csv": ("csv", _delimited(",")),
    "csv with a byte order mark": ("csv", _bom(_delimited(","))),
    "csv with semicolons": ("csv", _delimited(";")),
    "csv with tabs": ("csv", _delimited("\t")),
    "csv with bars": ("txt", _delimited("|")),
    "tsv": ("tsv", _plain_tsv),
    "json list": ("json", lambda rows: json.dumps(list(rows), ensure_ascii=False).encode()),
    "json columns": ("json", lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()),
    "jsonl": ("jsonl", lambda rows: "\n".join(json.dumps(row) for row in rows).encode()),
    "parquet": ("parquet", _with(pq.write_table)),
    "arrow file": ("arrow", lambda rows: _arrow(rows, stream=False)),
    "arrow stream": ("arrow", lambda rows: _arrow(rows, stream=True)),
    "feather": ("feather", _with(pyarrow.feather.write_feather)),
}
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write_rows(folder: Path, rows: Rows, kind: str, packed: str = "", name: str = "d") -> Path:
    """Write rows as a file of one of FORMATS, compressed by one of COMPRESSED, and return its path."""
    ending, write = FORMATS[kind]
    file = folder / f"{name}.{ending}{packed}"
    file.write_bytes(COMPRESSED[packed](write(rows)))
    return file
