"""Columns of the `datasets` library: loaded data sets, and class names (ClassLabel) in their schemas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import datasets
import pyarrow as pa

from finetune.data.cell_values import BATCH_ROWS, Column, require_columns
from finetune.data.typed_rows import cells_of_table, label_column


def read_dataset(rows: datasets.Dataset, columns: Sequence[Column], where: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a loaded data set in batches.

    Raises:
        DataError: a column is missing, or a cell cannot be read as text; the message names the row.
    """
    require_columns(columns, rows.column_names, where)
    label = label_column(columns)
    names = feature_names(rows.features, label) if label else None
    selected = rows.select_columns([column.name for column in columns]).with_format("arrow")
    first = 1
    for table in selected.iter(batch_size=BATCH_ROWS):
        yield cells_of_table(table, columns, where, first, names)
        first += len(table)


def schema_class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the label names of a ClassLabel column from the metadata that `datasets` writes to a schema, or None."""
    label_schema = pa.schema([schema.field(label)], metadata=schema.metadata)
    try:
        return feature_names(datasets.Features.from_arrow_schema(label_schema), label)
    except (ValueError, TypeError, KeyError, AttributeError):  # metadata of another tool, or damaged
        return None


def feature_names(features: datasets.Features, label: str) -> list[str] | None:
    """Return the label names of a ClassLabel feature or of a list of them, or None."""
    feature = features[label]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
