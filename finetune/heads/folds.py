"""What is learned from rows, learned from four parts of them apart, so that it comes with an error.

N rows, F folds, L layers, H heads
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from finetune.heads.estimate import Estimate
from finetune.heads.sample import Sample, real_heads, together

FOLDS = 4

Late = Callable[[], bool]


def learn_in_folds(
    sample: Sample, learn: Callable[[Sample, int, Late], np.ndarray], *, seed: int, max_seconds: float | None, note: str
) -> Estimate:
    """Return the mean of what `learn` makes of each fold, (L, H), with the standard error of that mean over folds.

    The error tells how much the result hangs on the rows and on the noise of learning; it is that of folds a quarter
    the size, each learned for itself.

    Args:
        learn: from a fold's rows, a seed, and a function that says when time is up.
        max_seconds: for all folds together; each has its part. None: no bound.
    """
    folds = min(FOLDS, len(sample))
    parts = np.array_split(np.random.default_rng(seed).permutation(sample.rows), folds)
    started, found = time.perf_counter(), []
    for number, part in enumerate(parts, start=1):
        until = math.inf if max_seconds is None else started + max_seconds * number / folds

        def late(until: float = until) -> bool:
            return until < math.inf and together(sample.accelerator, time.perf_counter() > until)

        found.append(learn(sample.only(np.sort(part)), seed + number - 1, late))
    table = np.stack(found)  # (F, L, H)
    table[:, ~real_heads(sample.sites)] = np.nan
    errors = table.std(0, ddof=1) / math.sqrt(folds) if folds > 1 else None
    return Estimate(table.mean(0), errors, note=f"{folds} folds of {len(sample) // folds} rows, {note}", folds=table)
