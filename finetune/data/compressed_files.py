"""Opening data files that may be compressed: gzip, zstd, bzip2 or xz, by the ending of the name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, TextIO, cast

import pyarrow as pa

from finetune.errors import DataError
from finetune.recipe.data_files import compression, uncompressed_name

# What the libraries raise for a damaged archive. An error of the disk is an OSError with a number.
_ARCHIVE_ERRORS = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError)


def open_bytes(file: Path) -> BinaryIO:
    """Open a file for reading, decompressed."""
    match compression(file):
        case "gzip":
            return cast("BinaryIO", gzip.open(file, "rb"))
        case "bzip2":
            return cast("BinaryIO", bz2.open(file, "rb"))
        case "xz":
            return cast("BinaryIO", lzma.open(file, "rb"))
        case "zstd":
            return cast("BinaryIO", pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"))
    return file.open("rb")


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """Open a file as UTF-8 text, decompressed; a byte order mark is skipped."""
    if compression(file) is None:
        return file.open(encoding="utf-8-sig", newline=newline)
    return io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", newline=newline)


@contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """Yield a file that can be read at any position: the file itself, or a temporary copy of a compressed one.

    Raises:
        DataError: the archive is damaged, or the copy cannot be written.
    """
    if compression(file) is None:
        yield file
        return
    with TemporaryDirectory(prefix="finetune-") as folder:
        copy = Path(folder, uncompressed_name(file).name)
        with report_damaged_archive(file), open_bytes(file) as packed:
            try:
                with copy.open("xb") as sink:
                    shutil.copyfileobj(packed, sink, 2**20)
            except OSError as error:
                if error.errno is None:
                    raise
                raise DataError(
                    f"{file} cannot be unpacked to the folder for temporary files, {folder}: {error.strerror}; free "
                    "disk space, or set TMPDIR to another folder"
                ) from error
        yield copy


def check_archive(file: Path) -> None:
    """Read a compressed file to its end; an error of the library says that it is damaged."""
    if compression(file) is not None:
        with open_bytes(file) as content:
            while content.read(2**20):
                pass


@contextmanager
def report_damaged_archive(file: Path) -> Iterator[None]:
    """Convert the errors of a damaged or truncated archive in the block to one message.

    Raises:
        DataError: the archive is damaged.
    """
    try:
        yield
    except _ARCHIVE_ERRORS as error:
        if compression(file) is None or getattr(error, "errno", None) is not None:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"the {compression(file)} archive {file} is damaged or incomplete ({reason}); create or download it again"
        ) from error
