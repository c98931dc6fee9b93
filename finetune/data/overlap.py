"""How many rows of a split are also training rows, compared by text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.data.rows import RawSplit
from finetune.data.text_keys import text_keys


def count_shared_rows(raw: RawSplit, train: RawSplit, columns: Sequence[str]) -> int:
    """Return how many rows have the text of a training row, ignoring case, punctuation and white space."""
    return int(np.isin(text_keys(raw, columns), text_keys(train, columns)).sum())
