"""The populations of the simulation of intervals: what a classifier does on infinitely many rows, and samples of it.

The interval of a share covers more or less than 95 % depending on its exact value (Brown, Cai and DasGupta 2001), so
each data set has a population of its own, whose error rate is 0.7 to 1.3 times that of the setting.

    N rows, C classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]
Generator = np.random.Generator


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        task: "single-label", "multi-label", "regression" or "difference".
        classes: number of classes C; 0 in regression.
        rows: number of rows N.
        accuracy: expected share of right labels; 0 in regression.
        sizes: "balanced", "95:5" (one class has 95 % of the rows) or "long tail" (class k has a share of 1 / k^0.8).
        errors: "spread" over all classes or "concentrated" on one; in regression, how errors are distributed.
    """

    task: str
    classes: int
    rows: int
    accuracy: float
    sizes: str
    errors: str


def class_shares(setting: Setting) -> Array:
    """Return the share of each class, (C,)."""
    count = setting.classes
    if setting.sizes == "95:5":
        return np.array([0.95] + [0.05 / (count - 1)] * (count - 1))
    shares = np.ones(count) if setting.sizes == "balanced" else np.arange(1, count + 1) ** -0.8
    return shares / shares.sum()


def confusion_shares(setting: Setting, rng: Generator, error: float) -> Array:
    """Return the share of the rows with each label and prediction, (C, C); the classes differ in their error rates."""
    shares, count = class_shares(setting), setting.classes
    rates = rng.gamma(3, 1 / 3, count)
    for _ in range(2):  # limited to 0.95, then scaled again
        rates = np.minimum(rates * error / (shares @ rates), 0.95)
    if setting.errors == "spread":
        others = shares * rng.gamma(0.5, 1, (count, count)) + 1e-9
    else:
        others = np.full((count, count), 0.2 / count) + 0.8 * np.roll(np.eye(count), 1, axis=1)
    np.fill_diagonal(others, 0.0)
    others /= others.sum(1, keepdims=True)
    return shares[:, None] * ((1 - rates)[:, None] * np.eye(count) + rates[:, None] * others)


def draw_error(setting: Setting, rng: Generator) -> float:
    """Return the error rate of a population."""
    return (1 - setting.accuracy) * rng.uniform(0.7, 1.3)


@dataclass(frozen=True)
class LabelSets:
    """A population of rows with several labels; rows are easy or difficult, which correlates the errors of labels.

    Attributes:
        prevalence: the share of the rows that have each label, (C,).
        missed, wrong: how often a label is missed, and predicted wrongly, on a row of mean difficulty, (C,).
    """

    prevalence: Array
    missed: Array
    wrong: Array
    difficulties = np.array([0.4, 1.6])  # factors of the error rates, equally frequent

    def hits_predicted(self) -> tuple[Array, Array]:
        """Return the shares of the rows in which each label is right, and predicted, (C,)."""
        hits = self.prevalence * (1 - self.missed)
        return hits, hits + (1 - self.prevalence) * self.wrong

    def subset_accuracy(self) -> float:
        """Return the share of the rows whose full set of labels is right."""
        error = self.prevalence * self.missed + (1 - self.prevalence) * self.wrong  # (C,)
        return float(np.mean(np.prod(1 - self.difficulties[:, None] * error, axis=1)))

    def draw(self, rows: int, rng: Generator) -> tuple[Array, Array]:
        """Return predicted and actual 0/1 label sets, (N, C)."""
        actual = rng.random((rows, len(self.prevalence))) < self.prevalence
        factor = rng.choice(self.difficulties, size=(rows, 1))
        error = rng.random(actual.shape) < factor * np.where(actual, self.missed, self.wrong)
        return (actual ^ error).astype(int), actual.astype(int)


def label_sets(setting: Setting, rng: Generator) -> LabelSets:
    """Return a population whose labels have an F1 near the accuracy of the setting."""
    count, error = setting.classes, draw_error(setting, rng)
    prevalence = np.minimum(0.5, 1.5 * class_shares(setting) + 0.01)
    rates = np.minimum(error * rng.gamma(3, 1 / 3, (2, count)), 0.6)
    return LabelSets(prevalence, rates[0], rates[1] * prevalence / (1 - prevalence))


ERRORS: dict[str, Callable[[Generator, int], Array]] = {
    "normal": lambda rng, rows: rng.normal(size=rows),
    "Laplace": lambda rng, rows: rng.laplace(size=rows) / 2**0.5,
    "t with 5 degrees of freedom": lambda rng, rows: rng.standard_t(5, rows) / (5 / 3) ** 0.5,
}


def draw_values(setting: Setting, rng: Generator, rows: int) -> tuple[Array, Array]:
    """Return predicted and actual values (N,); "ratings" are whole numbers from 1 to 5, most of them 4 or 5."""
    if setting.errors == "ratings":
        quality = rng.normal(size=rows)
        actual = np.clip(np.round(3.7 + 1.2 * quality + 0.7 * rng.normal(size=rows)), 1, 5)
        return 3.7 + 1.1 * quality, actual
    predicted = rng.normal(size=rows)
    return predicted, predicted + 0.5 * ERRORS[setting.errors](rng, rows)


@dataclass(frozen=True)
class Pair:
    """Two classifiers with correlated errors: the shares of each label and prediction, (C, C)."""

    first: Array
    second: Array
    correlation = 0.7  # of the latent variables that decide whether a row is predicted correctly

    def draw(self, rows: int, rng: Generator) -> tuple[Array, tuple[Array, Array]]:
        """Return labels (N,), and the predictions of both classifiers (N,)."""
        shares = self.first.sum(1)
        labels = rng.choice(len(shares), rows, p=shares / shares.sum())
        common = self.correlation**0.5 * rng.normal(size=rows)
        first, second = (self._predict(model, labels, common, rng) for model in (self.first, self.second))
        return labels, (first, second)

    def _predict(self, model: Array, labels: Array, common: Array, rng: Generator) -> Array:
        rates = model / model.sum(1, keepdims=True)
        level = stats.norm.cdf(common + (1 - self.correlation) ** 0.5 * rng.normal(size=len(labels)))
        others = rates - np.diag(np.diag(rates))
        bounds = (others / others.sum(1, keepdims=True)).cumsum(1)
        drawn = np.minimum((rng.random(len(labels))[:, None] > bounds[labels]).sum(1), len(rates) - 1)
        return np.where(level < 1 - np.diag(rates)[labels], drawn, labels)


def pair(setting: Setting, rng: Generator) -> Pair:
    """Return two classifiers, of which the second has three quarters of the errors of the first."""
    error = draw_error(setting, rng)
    return Pair(confusion_shares(setting, rng, error), confusion_shares(setting, rng, 0.75 * error))
