"""Rows of one split whose text is almost that of a row of another split, found by MinHash.

N rows
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

_SHINGLE = 4  # characters
# Jaccard similarity of the sets of shingles. Of the Banking77 test rows whose most similar training row is at 0.8 or
# above, nearly all are the same question with a word more or less, a plural or a typing error, and 95 % have the same
# label; from 0.6 to 0.7, questions about something else become frequent ("transfer" in place of "cash deposit").
SIMILARITY = 0.8
# Of the index, which misses few pairs well above its threshold: at 0.5 it found all 191 rows of Banking77 and TREC that
# a comparison of all pairs finds, at 0.7 it found 182. Candidates are compared exactly.
_INDEX_SIMILARITY = 0.5
_PERMUTATIONS = 128
_MAX_CHARACTERS = 1000  # of a text; bounds the time


def near_duplicates(texts: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Return position in `texts` -> position of the most similar text in `others`, where the two are nearly the same.

    Args:
        texts: folded texts, see text_keys.py; those of the smaller split, because they are indexed.
        others: folded texts. A text that is equal to one of them counts as nearly the same, too.

    The index is that of locality-sensitive hashing (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    chapter 3). The similarity of each pair it proposes is computed exactly.
    """
    from datasketch import MinHash, MinHashLSH  # takes half a second, and few commands need it

    def signatures(values: Sequence[str]) -> Iterator[MinHash]:
        encoded = ([shingle.encode() for shingle in _shingles(value)] for value in values)
        return MinHash.generator(encoded, num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)  # type: ignore[no-any-return]

    index = MinHashLSH(threshold=_INDEX_SIMILARITY, num_perm=_PERMUTATIONS)
    with index.insertion_session() as session:
        for position, signature in enumerate(signatures(texts)):
            session.insert(position, signature, check_duplication=False)
    best: dict[int, tuple[float, int]] = {}
    for other, signature in enumerate(signatures(others)):
        for position in sorted(index.query(signature)):
            similarity = _similarity(texts[position], others[other])
            if similarity >= SIMILARITY and similarity > best.get(position, (0.0, 0))[0]:
                best[position] = similarity, other
    return {position: other for position, (_, other) in sorted(best.items())}


def _shingles(text: str) -> set[str]:
    """Return all parts of a text with the length of a shingle, with a space before and after the text."""
    padded = f" {text[:_MAX_CHARACTERS]} "
    return {padded[start : start + _SHINGLE] for start in range(max(1, len(padded) - _SHINGLE + 1))}


def _similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of two texts."""
    first, second = _shingles(one), _shingles(other)
    return len(first & second) / len(first | second)
