"""Sets of labels while rows are read: a list is kept as its JSON text, until label_sets.py reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

HOW_TO_WRITE_SETS = (
    "write several labels in a cell as a;b (data.label_delimiter names another separator), as a JSON list such as "
    '["a", "b"], or give each label a column with 0 and 1 (data.label_columns)'
)


def list_as_json(labels: Sequence[str | None]) -> str:
    """Return a list of labels as JSON."""
    return json.dumps(labels, ensure_ascii=False)


def lists_as_json(lists: pa.ListArray) -> pa.StringArray:
    """Return lists of texts as JSON. Control characters are not escaped: the reader in label_sets.py accepts them."""
    items = lists.values
    if items.null_count:
        return pa.array([None if item is None else list_as_json(item) for item in lists.to_pylist()], pa.string())
    escaped = pc.replace_substring(pc.replace_substring(items, "\\", "\\\\"), '"', '\\"')
    joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, escaped, mask=lists.is_null()), '", "')
    texts = pc.binary_join_element_wise('["', joined, '"]', "")
    return pc.if_else(pc.equal(pc.list_value_length(lists), 0), "[]", texts)
