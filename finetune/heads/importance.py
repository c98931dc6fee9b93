"""How much each attention head matters to the loss.

N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.families import AttentionSite
from finetune.heads.sample import Sample, gate_gradients, heads_wide
from finetune.results import HeadScores

GRADIENT_FORMULA = "E|dL/dgate|"


def gradient_importance(sample: Sample) -> HeadScores:
    """Return E|dL/dgate| of every head: the mean over rows of the absolute gradient of a row's loss by its gate.

    Michel, Levy and Neubig 2019, equation 5, with the absolute value taken a row, as the equation says
    (public code takes it a batch, which lets rows cancel). Standard errors are those of the mean over rows.
    """
    gradients = np.abs(gate_gradients(sample))
    mean = gradients.mean(0, dtype=np.float64)  # (L, H)
    error = gradients.std(0, ddof=1, dtype=np.float64) / np.sqrt(len(sample)) if len(sample) > 1 else None
    return HeadScores(
        method="gradient",
        formula=GRADIENT_FORMULA,
        split=sample.split_name,
        rows=len(sample),
        values=_table(mean, sample.sites),
        standard_errors=_table(error, sample.sites),
    )


def _table(values: np.ndarray | None, sites: Sequence[AttentionSite]) -> list[list[float | None]]:
    wide = heads_wide(sites)
    return [
        [
            float(values[site.layer, head]) if values is not None and head < site.num_heads else None
            for head in range(wide)
        ]
        for site in sites
    ]
