"""What the first bytes of a file say about its format, so that a wrong ending of its name is one clear message."""

from __future__ import annotations

_UNPACK = "unpack it, and give the file inside"
_FEATHER = "write it as parquet or Feather version 2"

# File signatures: first bytes, what such a file is, how to fix it. {name} is the name of the file.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a parquet file", "rename it to .parquet"),
    (b"ARROW1", "an Arrow or Feather file", "rename it to .arrow"),
    (b"FEA1", "a Feather file of version 1", _FEATHER),
    (b"\x1f\x8b", "a gzip archive", "rename it to {name}.gz"),
    (b"BZh", "a bzip2 archive", "rename it to {name}.bz2"),
    (b"\xfd7zXZ\x00", "an xz archive", "rename it to {name}.xz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "rename it to {name}.zst"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "export the sheet as csv (UTF-8)"),
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
_ARCHIVES = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd"}
_OWN_FORMAT = {"a parquet file": "parquet", "an Arrow or Feather file": "arrow"}
_ARROW_STREAM = b"\xff\xff\xff\xff"  # before the length of the first message


def archive_type(start: bytes) -> str | None:
    """Return gzip, bzip2, xz or zstd if the first bytes of a file are those of such an archive, otherwise None."""
    return next((name for name, first in _ARCHIVES.items() if start.startswith(first)), None)


def detect_other_format(start: bytes, file_type: str, name: str) -> tuple[str, str] | None:
    """Return what a file really is and how to fix it, or None if its first bytes fit the format.

    Args:
        start: some thousand bytes.
        file_type: csv, tsv, txt, json, jsonl, parquet or arrow.
        name: of the file, for the fix.
    """
    if start.startswith(b"PK\x03\x04"):
        workbook = b"xl/" in start or b"[Content_Types].xml" in start
        return ("an Excel workbook", "export the sheet as csv (UTF-8)") if workbook else ("a zip archive", _UNPACK)
    for first, what, fix in _SIGNATURES:
        if start.startswith(first):
            return None if _OWN_FORMAT.get(what) == file_type else (what, fix.format(name=name))
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:14].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page or XML", "download the data file itself, or export the rows as csv or jsonl"
    if file_type in ("parquet", "arrow"):
        return None if start.startswith(_ARROW_STREAM) and file_type == "arrow" else _detect_text_format(text)
    if start.startswith(_ARROW_STREAM):
        return "an Arrow stream", "rename it to .arrow"
    if start[:64].count(0) > len(start[:64]) // 4:
        return "UTF-16 text or a binary file", "save it as UTF-8 text"
    json_like = text.startswith((b'{"', b'[{"', b"[\n", b"[\r\n", b"{\n", b"{\r\n"))
    if file_type in ("csv", "tsv", "txt") and json_like:
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
    return ("csv", "rename it to .csv") if b"," in first_line or b";" in first_line else None
