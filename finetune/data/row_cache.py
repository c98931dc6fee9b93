"""Rows on disk, read through memory mapping, under a name that is the checksum of their content.

Every run reads its files again, and what it finds is what it trains on; only token ids computed from the same content
are used again. So no time stamp or path can bring back rows of an earlier file.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa

from finetune.errors import DataError


def cache_folder() -> Path:
    """Return the folder in which rows and token ids are kept."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune"


@contextmanager
def cache_written() -> Iterator[None]:
    """Turn what a full disk or a read-only cache folder raises into one message that names the folder.

    Raises:
        DataError: writing failed within.
    """
    try:
        yield
    except OSError as error:
        raise _not_written(cache_folder(), error) from error


def cache_fault(error: BaseException) -> DataError | None:
    """Return the message for an error of the library about its own cache folder, None for any other error."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    file = getattr(error, "filename", None)
    about = isinstance(error, OSError) and file is not None and Path(str(file)).is_relative_to(folder)
    return _not_written(folder, error) if about and isinstance(error, OSError) else None


def _not_written(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the cache folder {folder}: {error.strerror or error}; make room, or name another folder in "
        "the environment variable HF_DATASETS_CACHE"
    )


def stored(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> datasets.Dataset:
    """Return rows as a data set that is read from disk as it is used.

    Raises:
        DataError: the cache folder cannot be written; or whatever `batches` raises.
    """
    with cache_written():
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{os.getpid()}-{uuid.uuid4().hex}.part"
        try:
            with part.open("xb") as sink, pa.ipc.new_stream(sink, schema) as stream:
                for batch in batches:
                    stream.write_batch(batch)
            with part.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()[:32]
            whole = folder / checksum / "rows.arrow"
            whole.parent.mkdir(exist_ok=True)
            try:
                part.replace(whole)
            except PermissionError:
                if not whole.is_file():  # on Windows a file that is open is not replaced; its content is the same
                    raise
        finally:
            part.unlink(missing_ok=True)
        return datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(whole)), fingerprint=checksum)
