"""Prediction sets with a promised coverage, from the scores of the validation rows; numpy only, as for ONNX models.

Split conformal prediction (Vovk et al. 2005, section 2.2; Angelopoulos and Bates 2021, arXiv 2107.07511). The score of
a label of a row is 1 minus its probability (Sadinle et al. 2019, "LAC"). A prediction set has every label whose score
is at most the k-th smallest score of n validation rows, k = ceil((n + 1) coverage). The label of a new row that is
drawn like the validation rows is in its set with at least this probability, whatever the model is.

On TREC, Banking77, SST-2 and CLINC150 this score gave smaller sets, and more sets of one label, than those of Romano
et al. 2020 (APS) and Angelopoulos et al. 2021 (RAPS); see `docs/probabilities.md`.

    N rows, C labels
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from finetune.errors import DataError, ModelError
from finetune.runs.atomic_files import write_text

FILE = "conformal.json"  # next to the weights, also of an exported model
# Validation rows whose scores are kept. With so many, the coverage of new rows varies by 0.002 (one standard deviation,
# at a coverage of 0.9) with the choice of the validation rows.
MAX_ROWS = 20_000
_EXACT = 1e-9  # differences that are rounding


@dataclass(frozen=True)
class ConformalScores:
    """The scores of the validation rows, each list in ascending order.

    Attributes:
        errors: by label, 1 minus the probability of the label, of the rows with this label; in regression one list of
            absolute errors.
        scope: `scope_scores` of all rows; () in regression.
    """

    errors: tuple[tuple[float, ...], ...]
    scope: tuple[float, ...] = ()

    def limit(self, coverage: float) -> float:
        """Return the highest score that a prediction set with this coverage may have.

        Raises:
            DataError: the coverage is not between 0 and 1, or there are too few validation rows for it.
        """
        return _quantile(sorted(value for part in self.errors for value in part), coverage, "")

    def limits_per_label(self, coverage: float, label_names: Sequence[str]) -> np.ndarray:
        """Return the highest score per label, (C,), with which every label is covered.

        Raises:
            DataError: the coverage is not between 0 and 1, or a label has too few validation rows for it.
        """
        fewest = min(range(len(label_names)), key=lambda label: len(self.errors[label]))
        order = [fewest, *range(len(label_names))]  # the message names the label with the fewest rows
        limits = {label: _quantile(self.errors[label], coverage, label_names[label]) for label in order}
        return np.array([limits[label] for label in range(len(label_names))])

    def scope_limit(self, kept: float) -> float:
        """Return the lowest scope score of rows that are in scope, so that at least this share of such rows is kept.

        Raises:
            DataError: the share is not between 0 and 1, or there are too few validation rows for it.
        """
        return -_quantile([-value for value in reversed(self.scope)], kept, "")


@dataclass(frozen=True)
class Limits:
    """What a label must meet to be in a prediction set, and a row to be in scope.

    Attributes:
        error: the highest score of each label, (C,); in regression the half width of the interval, (1,); None: no sets.
        scope: the lowest scope score; None: not computed.
    """

    error: np.ndarray | None = None
    scope: float | None = None

    def label_sets(self, probabilities: np.ndarray) -> np.ndarray | None:
        """Return which labels are in the prediction set of each row, (N, C); None without a coverage."""
        return None if self.error is None else 1 - probabilities <= self.error

    def in_scope(self, logits: np.ndarray) -> np.ndarray | None:
        """Return whether each row of the logits (N, C) is in scope, (N,); None if this is not computed."""
        return None if self.scope is None else scope_scores(logits) >= self.scope


def rows_needed(coverage: float) -> int:
    """Return the smallest number of validation rows with which a coverage can be promised."""
    return max(1, math.ceil(coverage / (1 - coverage) - _EXACT))


def _quantile(scores: Sequence[float], coverage: float, label: str) -> float:
    """Return the k-th of n ascending scores, k = ceil((n + 1) coverage).

    Args:
        label: whose rows these are; "": all rows.
    """
    if not 0 < coverage < 1:
        raise DataError(f"a coverage of {coverage:g} cannot be promised; it must be between 0 and 1, such as 0.9")
    rank = max(1, math.ceil((len(scores) + 1) * coverage - _EXACT))
    if rank > len(scores):
        of_label = f" with the label '{label}'" if label else ""
        fixes = ["train with more validation rows"]
        if label:
            fixes.insert(0, "leave out the coverage per class")
        if scores:
            fixes.insert(0, f"set at most {math.floor(1000 * len(scores) / (len(scores) + 1)) / 1000:g}")
        raise DataError(
            f"a coverage of {coverage:g} needs at least {rows_needed(coverage)} validation rows{of_label}, and the "
            f"model has {len(scores)}; {', or '.join(fixes)}"
        )
    return scores[rank - 1]


def conformal_scores(probabilities: np.ndarray, scope: np.ndarray, labels: np.ndarray, *, seed: int) -> ConformalScores:
    """Return the scores of validation rows; of more than MAX_ROWS, of a random choice.

    Args:
        probabilities: (N, C), or values (N, 1) in regression.
        scope: `scope_scores` (N,).
        labels: class ids (N,), or values (N,) in regression.
    """
    rows = np.arange(len(labels))
    if len(rows) > MAX_ROWS:
        rows = np.random.default_rng(seed).choice(rows, MAX_ROWS, replace=False)
    probabilities, scope, labels = probabilities[rows], scope[rows], labels[rows]
    if labels.dtype.kind == "f":
        return ConformalScores((_ascending(np.abs(probabilities[:, 0] - labels)),))
    errors = 1 - probabilities[np.arange(len(labels)), labels]
    by_label = tuple(_ascending(errors[labels == label]) for label in range(probabilities.shape[1]))
    return ConformalScores(by_label, _ascending(scope, -5e-6))


def scope_scores(logits: np.ndarray) -> np.ndarray:
    """Return how much each row of logits (N, C) looks like the training rows, (N,): log sum exp (Liu et al. 2020).

    With 95 % of the rows in scope kept, it rejects 89 % of the rows out of scope of CLINC150, and the highest
    probability 81 %; see `docs/probabilities.md`.
    """
    highest = logits.max(axis=1, keepdims=True).astype(np.float64)
    return np.asarray(highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=1)))


def _ascending(values: np.ndarray, margin: float = 5e-6) -> tuple[float, ...]:
    """Return sorted values with six significant digits.

    Args:
        margin: relative; no value gets lower with a positive margin, or higher with a negative one, so that a new row
            with the same score is within the limit.
    """
    return tuple(sorted(float(f"{value + abs(value) * margin:.6g}") for value in values.tolist()))


def write_conformal(scores: ConformalScores, folder: Path) -> None:
    """Write the scores next to the weights of a model."""
    write_text(folder / FILE, json.dumps({"errors": scores.errors, "scope": scores.scope}, allow_nan=False) + "\n")


def read_conformal(folder: Path, num_lists: int) -> ConformalScores | None:
    """Return the scores in the folder of a model, None if it has none.

    Args:
        num_lists: number of labels; 1 in regression.

    Raises:
        ModelError: the file is damaged.
    """
    file = folder / FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        lists = [*data["errors"], data["scope"]]
        if len(lists) != num_lists + 1:
            raise ValueError(f"it has scores of {len(lists) - 1} labels, and the model has {num_lists}")
        for values in lists:
            if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
                raise ValueError("a score is not a number")
            if any(first > second for first, second in pairwise(values)):
                raise ValueError("the scores are not in ascending order")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{file} is damaged ({type(error).__name__}: {error}); copy it from the run again, or remove it to predict "
            "without a coverage"
        ) from error
    return ConformalScores(tuple(tuple(map(float, part)) for part in lists[:-1]), tuple(map(float, lists[-1])))
