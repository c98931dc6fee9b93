"""The scores that the page computes for a slice, against those of `finetune.evaluation` on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from finetune.evaluation.bootstrap import classification_intervals, regression_intervals
from finetune.runs.results import MetricValue
from tests.support.browser import chromium, needs_chromium, opened
from tests.support.row_pages import multi_label_table, regression_table, single_label_table, write_rows_page

pytestmark = needs_chromium

SCRIPTS = ("random.js", "statistics.js", "regression_statistics.js")
SAMPLES = 4000  # resamples in Python
ALL = "scoresOf(rows, Uint32Array.from({ length: rows.count }, (_, position) => position))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def page_scores(browser: Any, path: Path, table: pa.Table, names: list[str]) -> Any:
    """Return the scores of all rows, as the page computes them."""
    with opened(browser, write_rows_page(path / "page.html", table, names, scripts=SCRIPTS)) as page:
        return page.evaluate(ALL)


def assert_same(shown: Mapping[str, Any], expected: MetricValue, resamples: int, step: float) -> None:
    """Assert that a value is equal and that its interval differs by no more than two bootstraps do.

    A percentile near the end of a normal distribution with standard deviation s has a standard error of
    2.67 s / sqrt(resamples), and a metric of few rows changes in steps.
    """
    if expected.value is None:
        assert shown["value"] is None
    else:
        assert shown["value"] == pytest.approx(expected.value, abs=1e-9)
    if expected.low is None or expected.high is None:
        assert (shown["low"], shown["high"]) == (None, None)
        return
    deviation = (expected.high - expected.low) / 3.92
    tolerance = 5 * 2.67 * deviation * np.sqrt(1 / resamples + 1 / SAMPLES) + step
    assert shown["low"] == pytest.approx(expected.low, abs=tolerance)
    assert shown["high"] == pytest.approx(expected.high, abs=tolerance)


def assert_same_scores(shown: Any, labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> None:
    metrics, per_class = classification_intervals(predicted, labels, names, samples=SAMPLES, seed=0)
    assert shown["rows"] == len(labels)
    assert shown["metrics"].keys() == metrics.keys()
    for name, value in metrics.items():
        assert_same(shown["metrics"][name], value, shown["resamples"], 1 / len(labels))
    assert [row["label"] for row in shown["classes"]] == names
    for row, expected in zip(shown["classes"], per_class, strict=True):
        assert row["rows"] == expected.support
        for name in ("precision", "recall", "f1"):
            assert_same(row[name], getattr(expected, name), shown["resamples"], 1 / max(expected.support, 1))


@pytest.mark.parametrize(("rows", "labels"), [(9, 2), (3000, 5), (400, 30)])
def test_scores_of_single_label_rows(browser: Any, tmp_path: Path, rows: int, labels: int) -> None:
    """Several classes; the last two never occur as a label, and the last neither as a prediction."""
    random = np.random.default_rng(rows)
    names = [f"label {label}" for label in range(labels + 2)]
    actual = random.integers(labels, size=rows)
    chosen = np.where(random.random(rows) < 0.7, actual, random.integers(labels + 1, size=rows))
    probabilities = np.full((rows, labels + 2), 0.3 / (labels + 1))
    probabilities[np.arange(rows), chosen] = 0.7
    table = single_label_table(probabilities, actual, names, [""] * rows)
    shown = page_scores(browser, tmp_path, table, names)
    assert shown["resamples"] == (0 if rows < 10 else 1000)
    assert_same_scores(shown, actual, chosen, names)


@pytest.mark.parametrize(("rows", "labels"), [(500, 3), (300, 40)])
def test_scores_of_multi_label_rows(browser: Any, tmp_path: Path, rows: int, labels: int) -> None:
    """Few label sets that occur often, and many that occur once; the last label never occurs."""
    random = np.random.default_rng(rows)
    names = [f"label {label}" for label in range(labels)]
    actual = (random.random((rows, labels)) < 0.25).astype(int)
    predicted = np.where(random.random((rows, labels)) < 0.9, actual, 1 - actual)
    actual[:, -1] = predicted[:, -1] = 0
    shown = page_scores(browser, tmp_path, multi_label_table(actual, predicted, names), names)
    assert shown["resamples"] > 200
    assert_same_scores(shown, actual, predicted, names)


@pytest.mark.parametrize(("rows", "constant"), [(1, False), (9, False), (500, False), (60, True)])
def test_scores_of_values(browser: Any, tmp_path: Path, rows: int, constant: bool) -> None:
    """With equal values, and with predictions that are all equal, whose correlations are undefined."""
    random = np.random.default_rng(rows)
    actual = random.integers(8, size=rows).astype(float)
    predicted = np.full(rows, 2.5) if constant else (actual + random.normal(size=rows)).astype(np.float32).astype(float)
    shown = page_scores(browser, tmp_path, regression_table(actual, predicted), [])
    expected = regression_intervals(predicted, actual, samples=SAMPLES, seed=0)
    assert shown["metrics"].keys() == expected.keys()
    assert (shown["metrics"]["pearson"]["value"] is None) == (constant or rows == 1)
    for name, value in expected.items():
        assert_same(shown["metrics"][name], value, shown["resamples"] or 1, 0)


@pytest.fixture(scope="module")
def formulas(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page with the scripts and a few rows."""
    table = regression_table(np.arange(3.0), np.arange(3.0))
    path = write_rows_page(tmp_path_factory.mktemp("formulas") / "page.html", table, [], scripts=SCRIPTS)
    with opened(browser, path) as page:
        yield page


@pytest.mark.parametrize(("trials", "probability"), [(30, 0.2), (1000, 0.3), (500, 0.97), (100_000, 0.0001)])
def test_binomial_numbers_have_their_distribution(formulas: Any, trials: int, probability: float) -> None:
    drawn = formulas.evaluate(
        """([trials, probability]) => {
            const generator = new Generator(7);
            return Array.from({ length: 20000 }, () => generator.binomial(trials, probability));
        }""",
        [trials, probability],
    )
    values = np.arange(trials + 1)
    shares = np.bincount(drawn, minlength=trials + 1).cumsum() / len(drawn)
    distance = np.abs(shares - stats.binom(trials, probability).cdf(values)).max()
    assert distance < 1.95 / np.sqrt(len(drawn))  # Kolmogorov and Smirnov: exceeded once in a thousand


def test_a_resample_has_as_many_rows_as_the_slice(formulas: Any) -> None:
    """Whether rows or numbers per cell are drawn, the mean of each cell is its number of rows."""
    for sizes in ([1, 1, 2, 1], [900, 90, 9, 1]):
        drawn = np.array(
            formulas.evaluate(
                """(sizes) => {
                    const sampler = new CellSampler(Uint32Array.from(sizes), new Generator(3));
                    const drawn = new Uint32Array(sizes.length);
                    return Array.from({ length: 2000 }, () => (sampler.draw(drawn), [...drawn]));
                }""",
                sizes,
            )
        )
        assert (drawn.sum(1) == sum(sizes)).all()
        errors = np.sqrt(np.array(sizes) / len(drawn))  # standard errors of the means, at most
        assert (np.abs(drawn.mean(0) - sizes) < 4 * errors).all()


def test_wilson_intervals_are_those_of_scipy(formulas: Any) -> None:
    for successes, trials in ((0, 5), (3, 7), (20, 20)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        shown = formulas.evaluate(f"wilsonInterval({successes}, {trials})")
        assert shown == pytest.approx([expected.low, expected.high], abs=1e-9)


def test_few_resamples_give_a_standard_error(formulas: Any) -> None:
    """An interval of fewer than 200 resamples is 1.96 of their standard deviations wide on each side."""
    drawn = [0.8, 0.82, 0.84, 0.86]
    shown = formulas.evaluate("(drawn) => intervalsOf([0.83], drawn.map((value) => [value]))[0]", drawn)
    half = stats.norm.ppf(0.975) * np.std(drawn, ddof=1)
    assert [shown["value"], shown["low"], shown["high"]] == pytest.approx([0.83, 0.83 - half, 0.83 + half])


def test_the_same_rows_have_the_same_interval(formulas: Any) -> None:
    first, second = (formulas.evaluate("[...Array(9).keys()].map(() => new Generator(5).uniform())") for _ in range(2))
    assert first == second
    assert all(one == other for one, other in pairwise(first))  # one seed, one number
    assert formulas.evaluate("new Generator(6).uniform()") != first[0]


def test_the_interval_of_many_values_is_that_of_a_sample(browser: Any, tmp_path: Path) -> None:
    """The standard error of 12,000 values, from 100 resamples of 10,000 of them, has an error of 1 / sqrt(200)."""
    random = np.random.default_rng(0)
    actual = random.normal(size=12_000).astype(np.float32).astype(float)
    predicted = (actual + random.normal(size=12_000)).astype(np.float32).astype(float)
    shown = page_scores(browser, tmp_path, regression_table(actual, predicted), [])
    assert (shown["resamples"], shown["normal"], shown["sampled"]) == (100, True, 10_000)
    errors = predicted - actual
    for name, terms in (("mean_squared_error", errors**2), ("mean_absolute_error", np.abs(errors))):
        estimate = shown["metrics"][name]
        assert estimate["value"] == pytest.approx(terms.mean())
        half = 1.96 * terms.std() / np.sqrt(len(terms))
        assert estimate["high"] - estimate["value"] == pytest.approx(half, rel=5 / np.sqrt(200))
        assert estimate["value"] - estimate["low"] == pytest.approx(half, rel=5 / np.sqrt(200))
