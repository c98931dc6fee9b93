"""The data formats: csv, tsv, json, jsonl and parquet, chosen by the ending of the file name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from finetune.data.cell_values import Column
from finetune.data.csv_rows import read_delimited
from finetune.data.json_rows import read_json
from finetune.data.parquet_rows import ClassNames, read_parquet
from finetune.errors import DataError

_NUM_FIRST_BYTES = 4096
_UNPACK = "unpack it, and give the file inside"

# File signatures: first bytes, what such a file is, how to fix it.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a parquet file", "rename it to .parquet"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "export the sheet as csv (UTF-8)"),
    (b"ARROW1", "an Arrow or Feather file", "write it as parquet"),
    (b"SQLite format 3\x00", "an SQLite database", "export the rows as csv or jsonl"),
    (b"\x89HDF", "an HDF5 file", "export the rows as csv or jsonl"),
    (b"%PDF", "a PDF file", "give the rows as csv or jsonl"),
    (b"\x80\x04\x95", "a Python pickle", "export the rows as csv or jsonl"),
    (b"\x80\x05\x95", "a Python pickle", "export the rows as csv or jsonl"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself", "run `git lfs pull`"),
)


def file_format(file: Path) -> str:
    """Return csv, tsv, json, jsonl or parquet."""
    return file.suffix.lstrip(".").lower()


def read_file(file: Path, columns: Sequence[Column], class_names: ClassNames | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file in batches.

    Args:
        class_names: see `read_parquet`.

    Raises:
        DataError: the file cannot be read, or a row is malformed; the message names the row or line.
    """
    file_type = file_format(file)
    with readable(file, file_type):
        if file_type == "parquet":
            yield from read_parquet(file, columns, class_names)
        elif file_type in ("csv", "tsv"):
            yield from read_delimited(file, file_type, columns)
        else:
            yield from read_json(file, file_type, columns)


@contextmanager
def readable(file: Path, file_type: str) -> Iterator[None]:
    """Check that a file has content of its format; convert the errors of reading it in the block.

    Raises:
        DataError: the file cannot be read, is empty, is of another format, or is not UTF-8.
    """
    try:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty (0 bytes); add rows")
        _check_first_bytes(file, file_type)
        yield
    except UnicodeDecodeError as error:
        raise _not_utf8_error(file) from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}; correct the path or its permissions"
        ) from error


def _check_first_bytes(file: Path, file_type: str) -> None:
    """Raise DataError if the first bytes of a file belong to another format than the ending of its name.

    Args:
        file_type: csv, tsv, json, jsonl or parquet.
    """
    with file.open("rb") as content:
        start = content.read(_NUM_FIRST_BYTES)
    actual = _detect_other_format(start, file_type)
    if actual is not None:
        what, fix = actual
        name = f"the name of {file} ends in .{file_type}"
        if file_format(file) != file_type:  # another format was requested than that of the name
            name = f"{file} is read as {file_type}"
        raise DataError(f"{name}, but its first bytes are those of {what}; {fix}")


def _detect_other_format(start: bytes, file_type: str) -> tuple[str, str] | None:
    """Return what the file really is and how to fix it, or None if its first bytes fit the format."""
    if start.startswith(b"PK\x03\x04"):
        workbook = b"xl/" in start or b"[Content_Types].xml" in start
        return ("an Excel workbook", "export the sheet as csv (UTF-8)") if workbook else ("a zip archive", _UNPACK)
    for first, what, fix in _SIGNATURES:
        if start.startswith(first):
            return None if (what, file_type) == ("a parquet file", "parquet") else (what, fix)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:14].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page or XML", "download the data file itself, or export the rows as csv or jsonl"
    if file_type == "parquet":
        return _detect_text_format(text)
    if start[:64].count(0) > len(start[:64]) // 4:
        return "UTF-16 text or a binary file", "save it as UTF-8 text"
    json_like = text.startswith((b'{"', b'[{"', b"[\n", b"[\r\n", b"{\n", b"{\r\n"))
    if file_type in ("csv", "tsv") and json_like:
        return "JSON", "rename it to .jsonl, or to .json if it is one list"
    return _detect_text_format(text) if file_type in ("json", "jsonl") and text[:1] not in (b"{", b"[") else None


def _detect_text_format(text: bytes) -> tuple[str, str] | None:
    """Return which text format the first bytes look like and how to fix the file, or None."""
    first_line = text.split(b"\n", 1)[0]
    if text[:1] in (b"{", b"["):
        return "JSON", "rename it to .jsonl, or to .json if it is one list"
    if b"\x00" in first_line or b"\n" not in text:
        return None
    if b"\t" in first_line:
        return "tab-separated text", "rename it to .tsv"
    return ("csv", "rename it to .csv") if b"," in first_line else None


def _not_utf8_error(file: Path) -> DataError:
    """Return the error for a file that is not UTF-8; it names the first such line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                return DataError(f"{file} line {number} is not UTF-8 ({bad}); save the file as UTF-8")
    return DataError(f"{file} is not UTF-8; save it as UTF-8")
