"""Numbers of tokens per row: quantiles, and which maximum length to choose.

N rows
"""

from __future__ import annotations

import numpy as np

_USUAL_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)


def length_quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Return the lengths (N,) that 50, 90, 95, 99 and 100 % of the rows have at most, by percentage."""
    shares = (50, 90, 95, 99, 100)
    values = np.quantile(lengths, [share / 100 for share in shares], method="inverted_cdf")
    return {str(share): int(value) for share, value in zip(shares, values, strict=True)}


def usual_length(tokens: int, limit: float) -> int:
    """Return the smallest usual maximum length of at least `tokens` tokens; at most `limit`, which may be infinite."""
    return int(min(next((length for length in _USUAL_LENGTHS if length >= tokens), tokens), limit))


def truncation_hint(max_length: int, suggested: int, long_text: str = "truncate") -> str:
    """Return what to do about truncated rows.

    Args:
        suggested: the maximum length that would fit nearly all rows, within the limit of the model.
        long_text: `data.long_text`.
    """
    longer = f"raise data.max_length to {suggested}" if suggested > max_length else ""
    if long_text == "window":
        return f"{longer}, or raise data.max_windows" if longer else "raise data.max_windows"
    key = "set data.long_text" + ": window" * (long_text == "head_tail")
    return f"{longer}, or {key}" if longer else f"the model takes no longer rows, so {key}"
