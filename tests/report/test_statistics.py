"""The scores that the page computes for a slice, against those of `finetune.evaluation` on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from finetune.evaluation.intervals import classification_intervals, share_interval
from finetune.evaluation.regression_intervals import regression_intervals
from finetune.runs.results import MetricValue
from tests.support.browser import chromium, needs_chromium, opened
from tests.support.row_pages import multi_label_table, regression_table, single_label_table, write_rows_page

pytestmark = needs_chromium

SCRIPTS = ("quantiles.js", "intervals.js", "statistics.js", "regression_statistics.js")
ALL = "scoresOf(rows, Uint32Array.from({ length: rows.count }, (_, position) => position))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def page_scores(browser: Any, path: Path, table: pa.Table, names: list[str]) -> Any:
    """Return the scores of all rows, as the page computes them."""
    with opened(browser, write_rows_page(path / "page.html", table, names, scripts=SCRIPTS)) as page:
        return page.evaluate(ALL)


def assert_same(shown: Mapping[str, Any], expected: MetricValue) -> None:
    """Assert that a value, its interval and its note are those of Python."""
    for name in ("value", "low", "high"):
        number = getattr(expected, name)
        assert shown[name] == (None if number is None else pytest.approx(number, abs=1e-8))  # measured 1e-10
    assert shown["note"] == expected.note


def assert_same_scores(shown: Any, labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> None:
    metrics, per_class = classification_intervals(predicted, labels, names)
    assert shown["rows"] == len(labels)
    assert shown["metrics"].keys() == metrics.keys()
    for name, value in metrics.items():
        assert_same(shown["metrics"][name], value)
    assert [row["label"] for row in shown["classes"]] == names
    for row, expected in zip(shown["classes"], per_class, strict=True):
        assert row["rows"] == expected.support
        for name in ("precision", "recall", "f1"):
            assert_same(row[name], getattr(expected, name))


@pytest.mark.parametrize(("rows", "labels"), [(9, 2), (30, 2), (3000, 5), (400, 30)])
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
    assert_same_scores(shown, actual, predicted, names)


@pytest.mark.parametrize(("rows", "constant"), [(1, False), (9, False), (500, False), (60, True)])
def test_scores_of_values(browser: Any, tmp_path: Path, rows: int, constant: bool) -> None:
    """With equal values, and with predictions that are all equal, whose correlations are undefined."""
    random = np.random.default_rng(rows)
    actual = random.integers(8, size=rows).astype(float)
    predicted = np.full(rows, 2.5) if constant else (actual + random.normal(size=rows)).astype(np.float32).astype(float)
    shown = page_scores(browser, tmp_path, regression_table(actual, predicted), [])
    expected = regression_intervals(predicted, actual)
    assert shown["metrics"].keys() == expected.keys()
    assert (shown["metrics"]["pearson"]["value"] is None) == (constant or rows == 1)
    for name, value in expected.items():
        assert_same(shown["metrics"][name], value)


@pytest.fixture(scope="module")
def formulas(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page with the scripts and a few rows."""
    table = regression_table(np.arange(3.0), np.arange(3.0))
    path = write_rows_page(tmp_path_factory.mktemp("formulas") / "page.html", table, [], scripts=SCRIPTS)
    with opened(browser, path) as page:
        yield page


def test_quantiles_are_those_of_scipy(formulas: Any) -> None:
    for successes, trials in ((0, 10), (0.3, 4.7), (1, 1), (37, 40), (4990.5, 5000), (60_000, 100_000)):
        shown = formulas.evaluate(f"shareInterval({successes}, {trials})")
        assert shown == pytest.approx([float(bound) for bound in share_interval(successes, trials)], rel=1e-9)
    for degrees in (1, 9, 49.5, 5000):
        expected = stats.t.ppf(0.975, degrees)
        assert formulas.evaluate(f"tQuantile({degrees})") == pytest.approx(expected, rel=1e-9)


def test_wilson_intervals_are_those_of_scipy(formulas: Any) -> None:
    for successes, trials in ((0, 5), (3, 7), (20, 20)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        shown = formulas.evaluate(f"wilsonInterval({successes}, {trials})")
        assert shown == pytest.approx([expected.low, expected.high], abs=1e-9)


@pytest.mark.parametrize("labels", [np.zeros(30, int), np.arange(30) % 2])
def test_scores_of_rows_that_are_all_right(browser: Any, tmp_path: Path, labels: np.ndarray) -> None:
    """With one label the Matthews correlation has no interval, otherwise everything has one that ends at 1."""
    names = ["a", "b"]
    shown = page_scores(browser, tmp_path, single_label_table(np.eye(2)[labels], labels, names, [""] * 30), names)
    assert_same_scores(shown, labels, labels, names)
    assert shown["metrics"]["accuracy"]["high"] == 1
