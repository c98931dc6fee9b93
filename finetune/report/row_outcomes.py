"""Which predicted rows are wrong.

N rows, K labels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_text(column_type: pa.DataType) -> bool:
    """Return whether a column contains texts."""
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))


def label_ids(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return label names as positions in `names`, (N,)."""
    found = pc.index_in(column, value_set=pa.array(names, column.type))
    return np.asarray(found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy())


def label_sets(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """Return lists of label names as (N, K) booleans."""
    sizes = pc.list_value_length(column).to_numpy()
    sets = np.zeros((len(column), len(names)), bool)
    sets[np.repeat(np.arange(len(column)), sizes), label_ids(pc.list_flatten(column), names)] = True
    return sets


def wrong_rows(table: pa.Table) -> np.ndarray:
    """Return which rows were predicted wrongly, (N,): in multi-label rows, any label; in regression no row."""
    label, predicted = table["label"], table["predicted"]
    if pa.types.is_floating(label.type):
        return np.zeros(table.num_rows, bool)
    if is_text(label.type):
        return np.array(pc.not_equal(label, predicted).to_numpy())
    names = sorted({name for each in (label, predicted) for name in pc.list_flatten(each).unique().to_pylist()})
    sets = [label_sets(each, names) for each in (label, predicted)]
    return np.asarray((sets[0] != sets[1]).any(axis=1))
