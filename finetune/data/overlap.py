"""How many rows of a split are also training rows, compared by text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.rows import RawSplit

_BLOCK_ROWS = 100_000  # rows whose texts are compared at a time


def count_shared_rows(raw: RawSplit, train: RawSplit, columns: Sequence[str]) -> int:
    """Return how many rows have the text of a training row, ignoring case and surrounding white space.

    Texts are read in blocks, so that neither split has to fit in memory.
    """
    shared = 0
    for texts in _texts_in_blocks(raw, columns):
        distinct = pc.unique(texts)
        in_train = np.zeros(len(distinct), dtype=bool)
        for train_texts in _texts_in_blocks(train, columns):
            indices = pc.index_in(train_texts, value_set=distinct).drop_null().to_numpy(zero_copy_only=False)
            in_train[indices] = True
            if in_train.all():
                break
        shared += int(in_train[pc.index_in(texts, value_set=distinct).to_numpy()].sum())
    return shared


def _texts_in_blocks(raw: RawSplit, columns: Sequence[str]) -> Iterator[pa.Array]:
    """Yield the lowercase texts of each block of rows; the two texts of a pair are joined to one."""
    table = raw.rows.data.table.select(list(columns))
    for start in range(0, len(table), _BLOCK_ROWS):
        block = table.slice(start, _BLOCK_ROWS)
        texts = [pc.utf8_lower(pc.utf8_trim_whitespace(block[name].cast(pa.string()))) for name in columns]
        yield (texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")).combine_chunks()
