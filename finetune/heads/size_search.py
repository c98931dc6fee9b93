"""Choose the size of every sublayer: the lowest total cost within a time limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CELLS = (
    4000  # into which the time limit is divided; each time is rounded up, in all by at most 0.3 % with 12 sublayers
)


def cheapest_sizes(
    costs: Sequence[Sequence[float]], seconds: Sequence[Sequence[float]], max_seconds: float
) -> list[int] | None:
    """Return the index of a size for each sublayer, so that the sum of costs is lowest and the time is within a limit.

    The times are rounded up to multiples of a small part of the limit. Dynamic programming over them then finds the
    best combination, as in SPDY (Frantar and Alistarh 2022).

    Args:
        costs, seconds: per sublayer, for each of its sizes.

    Returns:
        None if the smallest sizes together take longer.
    """
    if max_seconds <= 0:
        return None
    lowest = np.zeros(_CELLS + 1)  # cost of the sublayers so far, within each part of the time limit
    choices = []
    for size_costs, size_seconds in zip(costs, seconds, strict=True):
        cells = np.ceil(np.asarray(size_seconds) / max_seconds * _CELLS - 1e-6).astype(int)
        options = np.full((len(size_costs), _CELLS + 1), np.inf)
        for index, (cost, used) in enumerate(zip(size_costs, cells, strict=True)):
            if used <= _CELLS:
                options[index, used:] = lowest[: _CELLS + 1 - used] + cost
        choices.append((options.argmin(0), cells))
        lowest = options.min(0)
    if np.isinf(lowest[-1]):
        return None
    remaining, sizes = _CELLS, list[int]()
    for choice, cells in reversed(choices):
        sizes.append(int(choice[remaining]))
        remaining -= cells[sizes[-1]]
    return sizes[::-1]
