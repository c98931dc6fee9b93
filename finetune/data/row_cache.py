"""The cache of rows on disk: memory-mapped Arrow files, named by the checksum of their content.

Every run reads its data files again. Only token ids are reused, and only if the content of the rows is the same, so a
changed data file is always noticed, whatever its path and time stamp.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from finetune.errors import DataError
from finetune.progress import stage


def cache_folder() -> Path:
    """Return the cache folder for rows and token ids."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune"


@contextmanager
def report_cache_errors() -> Iterator[None]:
    """Convert the errors of a full disk or a read-only cache folder to one message with the folder.

    Raises:
        DataError: writing failed in the block.
    """
    try:
        yield
    except OSError as error:
        raise _cannot_write(cache_folder(), error) from error


def cache_error(error: BaseException) -> DataError | None:
    """Return the message if an error of `datasets` concerns its cache folder, None for any other error."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    file = getattr(error, "filename", None)
    in_cache = isinstance(error, OSError) and file is not None and Path(str(file)).is_relative_to(folder)
    return _cannot_write(folder, error) if in_cache and isinstance(error, OSError) else None


def _cannot_write(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the cache folder {folder}: {error.strerror or error}; free disk space, or set the "
        "environment variable HF_DATASETS_CACHE to another folder"
    )


def store_rows(batches: Iterator[pa.RecordBatch], schema: pa.Schema, where: str) -> datasets.Dataset:
    """Write rows to the cache, and return them as a memory-mapped data set.

    Args:
        where: the file or data set of the rows, shown with the progress.

    Raises:
        DataError: the cache folder cannot be written; or any error of `batches`.
    """
    with report_cache_errors(), stage(f"reading {where}") as running:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{os.getpid()}-{uuid.uuid4().hex}.part"
        try:
            with temporary.open("xb") as sink, pa.ipc.new_stream(sink, schema) as stream:
                rows = 0
                for batch in batches:
                    stream.write_batch(batch)
                    rows += len(batch)
                    running.describe(f"{rows:,} rows")
            with temporary.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()[:32]
            file_path = folder / checksum / "rows.arrow"
            file_path.parent.mkdir(exist_ok=True)
            try:
                temporary.replace(file_path)
            except PermissionError:
                if not file_path.is_file():  # on Windows an open file cannot be replaced, but has the same content
                    raise
        finally:
            temporary.unlink(missing_ok=True)
        return datasets.Dataset(datasets.table.MemoryMappedTable.from_file(str(file_path)), fingerprint=checksum)


def take_rows(rows: datasets.Dataset, positions: np.ndarray, where: str) -> datasets.Dataset:
    """Return the rows of a memory-mapped data set at these sorted positions, written to the cache.

    `Dataset.flatten_indices` handles each row as a table: it took 5 s for 100,000 rows, this 0.1 s.

    Raises:
        DataError: the cache folder cannot be written.
    """
    table = rows.data.table

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in table.to_batches():
            first, last = np.searchsorted(positions, [start, start + len(batch)])
            if first < last:
                yield batch.take(pa.array(positions[first:last] - start))
            start += len(batch)

    return store_rows(batches(), table.schema, where)
