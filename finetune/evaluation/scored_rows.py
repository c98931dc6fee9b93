"""The labels and predictions of rows, from which every metric can be computed.

N rows, C classes
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class UndefinedMetricError(Exception):
    """A metric is undefined for these rows; the message says why."""


@dataclass(frozen=True)
class ScoredRows:
    """The labels and the predictions of rows.

    Attributes:
        labels: class ids (N,), 0/1 label sets (N, C) or values (N,).
        predicted: in the same form.
        probabilities: (N, C); None in regression, and if they are not known.
        label_names: in the order of the class ids; one name in regression.
    """

    labels: Array
    predicted: Array
    probabilities: Array | None
    label_names: tuple[str, ...]
    problem_type: str

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Array) -> ScoredRows:
        """Return the rows with these numbers, which may be repeated."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return ScoredRows(self.labels[rows], self.predicted[rows], probabilities, self.label_names, self.problem_type)

    @cached_property
    def scores(self) -> Array:
        """The probabilities (N, C) in float64; those of one label per row sum to 1 without rounding error."""
        if self.probabilities is None:
            raise UndefinedMetricError("it needs probabilities, and there are none")
        values = self.probabilities.astype(np.float64)
        return values / values.sum(1, keepdims=True) if self.labels.ndim == 1 else values

    @cached_property
    def indicators(self) -> Array:
        """The labels as 0 or 1 per label, (N, C)."""
        return np.eye(len(self.label_names), dtype=np.int64)[self.labels] if self.labels.ndim == 1 else self.labels
