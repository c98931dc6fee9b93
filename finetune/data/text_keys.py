"""Which rows have the same text, compared without case, punctuation, white space and Unicode form. Imports no torch.

N rows
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.rows import RawSplit

_BLOCK_ROWS = 100_000  # rows whose texts are in memory at a time
_SEPARATOR = "\x1f"  # between the two texts of a pair
# Punctuation, and signs of currency and arithmetic; not emojis, which change what a text says.
_PUNCTUATION = r"[\pP\p{Sc}\p{Sk}\p{Sm}\s]+"


def fold_texts(texts: pa.Array) -> pa.Array:
    """Return texts in lowercase and in the Unicode form NFKC, with one space for any punctuation and white space.

    A text that is only punctuation keeps it, because ":)" and ":(" differ.
    """
    lower = pc.utf8_trim_whitespace(pc.utf8_lower(pc.utf8_normalize(texts.cast(pa.string()), "NFKC")))
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(lower, _PUNCTUATION, " "))
    return pc.if_else(pc.equal(words, ""), lower, words)


def text_keys(raw: RawSplit, columns: Sequence[str]) -> np.ndarray:
    """Return a 64-bit key of the folded text of each row, (N,): rows with the same key have the same text.

    The key of a pair is that of both its texts. Texts are read in blocks, so that they need not fit in memory.
    """
    keys = np.empty(len(raw.rows), dtype=np.uint64)
    for start in range(0, len(keys), _BLOCK_ROWS):
        folded = [fold_texts(raw.column(name).slice(start, _BLOCK_ROWS).combine_chunks()) for name in columns]
        texts = folded[0] if len(folded) == 1 else pc.binary_join_element_wise(*folded, _SEPARATOR)
        digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts.to_pylist())
        keys[start : start + len(texts)] = np.frombuffer(digests, dtype=np.uint64)
    return keys
