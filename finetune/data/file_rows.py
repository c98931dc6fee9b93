"""The rows of one file or of several files as one split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from finetune.data.cell_values import Column, arrow_schema
from finetune.data.class_names import schema_class_names
from finetune.data.file_formats import read_file
from finetune.data.row_cache import store_rows
from finetune.data.rows import RawSplit
from finetune.data.typed_rows import declared_names
from finetune.recipe.data_files import describe_files, file_format


def read_files(files: Sequence[Path], columns: Sequence[Column], delimiter: str | None) -> RawSplit:
    """Return the rows of files, in their order.

    Raises:
        DataError: a file cannot be read, or a row of it is malformed.
    """
    starts: list[tuple[Path, int]] = []

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for file in files:
            starts.append((file, rows))
            for batch in read_file(file, columns, schema_class_names, delimiter):
                rows += len(batch)
                yield batch

    source = describe_files(files)
    rows = store_rows(batches(), arrow_schema(columns), source)
    names = declared_names([(file, file_format(file)) for file in files], columns, schema_class_names)
    return RawSplit(rows, source, class_names=names, files=starts if len(files) > 1 else ())
