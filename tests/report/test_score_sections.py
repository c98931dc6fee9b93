"""The sections of the report that show the scores of the chosen rows, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.calibration import Confidences, calibration_error
from finetune.evaluation.metric_formulas import SINGLE_LABEL, confusion_matrix, counts_of_confusion
from tests.support.browser import chromium, needs_chromium, opened, wait_until
from tests.support.row_pages import multi_label_table, regression_table, single_label_table
from tests.support.scored_runs import write_scored_report

pytestmark = needs_chromium

ROWS = 300
NAMES = ["apple", "<b>bread</b>", "carrot", "</script>date"]
RANDOM = np.random.default_rng(0)
ACTUAL = RANDOM.choice(4, ROWS, p=[0.4, 0.3, 0.2, 0.1])
PROBABILITIES = RANDOM.dirichlet(np.ones(4), ROWS) + 1.2 * np.eye(4)[ACTUAL] * (RANDOM.random((ROWS, 1)) < 0.7)
PROBABILITIES /= PROBABILITIES.sum(1, keepdims=True)
PREDICTED = PROBABILITIES.argmax(1)
TEXTS = ["x" * (row % 40 + 1) for row in range(ROWS)]
SETS = (RANDOM.random((80, 3)) < 0.4).astype(int)
PREDICTED_SETS = np.where(RANDOM.random(SETS.shape) < 0.8, SETS, 1 - SETS)
VALUES = RANDOM.integers(9, size=5000).astype(float)
PREDICTED_VALUES = VALUES + RANDOM.normal(size=5000).astype(np.float32)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def single_label_page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    table = single_label_table(PROBABILITIES, ACTUAL, NAMES, TEXTS)
    folder = tmp_path_factory.mktemp("single") / "run"
    report = write_scored_report(folder, table, "single_label_classification", NAMES, ACTUAL, PREDICTED)
    with opened(browser, report) as page:
        yield page


@pytest.fixture
def single_label(single_label_page: Any) -> Any:
    """The page of a run, with all rows of its split."""
    single_label_page.evaluate("setState(Object.fromEntries(sliceKeys.map((key) => [key, null])))")
    wait_until(single_label_page, f"() => currentSlice.length === {ROWS}")
    return single_label_page


@pytest.fixture(scope="module")
def multi_label(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    table = multi_label_table(SETS, PREDICTED_SETS, NAMES[:3])
    folder = tmp_path_factory.mktemp("multi") / "run"
    report = write_scored_report(folder, table, "multi_label_classification", NAMES[:3], SETS, PREDICTED_SETS)
    with opened(browser, report) as page:
        yield page


@pytest.fixture(scope="module")
def regression(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    table = regression_table(VALUES, PREDICTED_VALUES)
    folder = tmp_path_factory.mktemp("values") / "run"
    with opened(browser, write_scored_report(folder, table, "regression", [], VALUES, PREDICTED_VALUES)) as page:
        yield page


def table_texts(page: Any, table: str) -> list[list[str]]:
    """Return the texts of the cells of a table's body."""
    rows: list[list[str]] = page.evaluate(
        """(id) => [...document.querySelectorAll(`#${id} tbody tr`)].map(
            (row) => [...row.cells].map((cell) => cell.textContent))""",
        table,
    )
    return rows


def test_the_scores_of_a_slice_are_shown_beside_those_of_the_split(single_label: Any) -> None:
    kept = ACTUAL == 1
    counts = counts_of_confusion(confusion_matrix(PREDICTED[kept], ACTUAL[kept], 4))
    page = single_label
    scores, classes = table_texts(page, "score-table"), table_texts(page, "class-table")
    names = [name.replace("_", " ") for name in SINGLE_LABEL]
    assert [row[0] for row in scores] == [names[0], "other score", *names[1:], "loss"]
    assert all(len(row) == 2 for row in scores)  # the whole split needs no further column
    page.evaluate("(label) => setState({ label })", NAMES[1])
    page.wait_for_selector("#score-table .slice-cell")
    assert page.inner_text("#score-table th.slice-cell") == f"{kept.sum()} chosen rows"
    shown = [row[2].split()[0] for row in table_texts(page, "score-table")]
    values = [f"{float(metric(counts)):.4f}" for metric in SINGLE_LABEL.values()]
    assert shown[:-1] == [values[0], "–", *values[1:]]
    method = page.inner_text("#score-method")
    assert "Matthews correlation: no interval: all rows have the same label or the same prediction." in method
    assert "For whole splits only: other score." in method
    assert "decides some scores" in method  # every precision of rows with one label is 1 or 0
    assert [row[1] for row in table_texts(page, "class-table")] == ["0", str(kept.sum()), "0", "0"]
    page.evaluate("setState({ label: null, text: 'no such text' })")
    wait_until(page, "() => document.querySelector('#class-rows').textContent === '0 chosen rows'")
    assert {row[2].split()[0] for row in table_texts(page, "score-table")} == {"undefined", "–"}
    assert {cell.split()[0] for row in table_texts(page, "class-table") for cell in row[2:]} == {"undefined"}
    assert "decides" not in page.inner_text("#score-method")
    page.evaluate("setState({ text: null })")
    page.wait_for_selector("#score-table .slice-cell", state="detached")
    assert table_texts(page, "class-table") == classes


def test_the_table_of_the_classes_stays_sorted(single_label: Any) -> None:
    def values() -> list[float]:
        return [float(row[4].split()[0]) for row in table_texts(page, "class-table")]

    page = single_label
    assert sorted(row[0] for row in table_texts(page, "class-table")) == sorted(NAMES)
    page.focus("#class-table th:nth-child(5) button")
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    page.keyboard.press("Enter")
    assert page.get_attribute("#class-table th:nth-child(5)", "aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    page.evaluate("setState({ length: '1-20' })")
    page.wait_for_selector("#score-table .slice-cell")
    assert values() == sorted(values(), reverse=True)


def matrix_order(page: Any) -> list[str]:
    """Return the classes on the axis of the confusion matrix."""
    page.wait_for_selector("#confusion-chart svg")
    names: list[str] = page.evaluate(
        "echarts.getInstanceByDom(document.getElementById('confusion-chart')).getOption().yAxis[0].data"
    )
    return names


def test_a_cell_of_the_confusion_matrix_chooses_its_rows(single_label: Any) -> None:
    wrong = int(((ACTUAL == 0) & (PREDICTED == 1)).sum())
    page = single_label
    page.locator("#confusion-chart").scroll_into_view_if_needed()
    order = matrix_order(page)
    place = [order.index(NAMES[1]), order.index(NAMES[0])]
    page.evaluate("document.getElementById('confusion-chart').scrollIntoView({ block: 'center', behavior: 'instant' })")
    x, y = page.evaluate(
        """(place) => {
            const chart = document.getElementById("confusion-chart");
            const [x, y] = echarts.getInstanceByDom(chart).convertToPixel({ gridIndex: 0 }, place);
            const box = chart.getBoundingClientRect();
            return [box.x + x, box.y + y];
        }""",
        place,
    )
    page.mouse.click(x, y)
    wait_until(page, f"() => currentSlice.length === {wrong}")
    assert page.evaluate("[getState('label'), getState('predicted')]") == NAMES[:2]
    assert page.inner_text("#confusion-rows") == "Test split, 300 rows."  # the matrix keeps all pairs


def test_the_pairs_of_the_confusion_matrix_work_with_the_keyboard(single_label: Any) -> None:
    confusion = confusion_matrix(PREDICTED, ACTUAL, 4)
    wrong = confusion * (1 - np.eye(4, dtype=int))
    label, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    page = single_label
    first = table_texts(page, "confused-pairs")[0]
    share = f"{100 * wrong.max() / confusion[label].sum():.1f} %"
    assert first == [NAMES[label], NAMES[predicted], str(wrong.max()), share]
    page.focus("#confused-pairs tbody a")
    page.keyboard.press("Enter")
    wait_until(page, f"() => currentSlice.length === {wrong.max()}")
    assert page.evaluate("[getState('label'), getState('predicted')]") == [NAMES[label], NAMES[predicted]]
    wait_until(page, "() => document.activeElement.closest('#confused-pairs')")  # the focus stays


def test_the_classes_of_the_confusion_matrix_can_be_reordered(single_label: Any) -> None:
    page = single_label
    page.locator("#confusion-chart").scroll_into_view_if_needed()
    assert sorted(matrix_order(page)) == sorted(NAMES)
    for choice, expected in (
        ("label", NAMES),
        ("name", sorted(NAMES, key=lambda name: name.strip("</>"))),
        ("size", [NAMES[index] for index in np.argsort(-np.bincount(ACTUAL), kind="stable")]),
    ):
        page.select_option("#confusion-order", choice)
        assert sorted(matrix_order(page)) == sorted(NAMES)
        if choice != "name":  # the order of punctuation depends on the browser
            assert matrix_order(page) == expected


def test_reliability_and_risk_are_those_of_the_rows(single_label: Any) -> None:
    page = single_label
    reliability = page.evaluate("reliabilityOf(byConfidence(currentSlice))")
    curve = page.evaluate(
        "(({ risks, area }) => ({ risks: [...risks], area }))(riskCoverageOf(byConfidence(currentSlice)))"
    )
    equal = page.evaluate("[...riskCoverageOf({ confidence: [0.9, 0.8, 0.8, 0.8], right: [1, 1, 0, 0] }).risks]")
    confidence = np.array(page.evaluate("[...rows.confidence]"))
    order = np.argsort(-confidence, kind="stable")
    right = (ACTUAL == PREDICTED)[order]
    assert [bin_["accuracy"] for bin_ in reliability["bins"]] == pytest.approx(right.reshape(10, 30).mean(1))
    assert [bin_["confidence"] for bin_ in reliability["bins"]] == pytest.approx(
        confidence[order].reshape(10, 30).mean(1)
    )
    expected = calibration_error(
        Confidences(confidence[:, None], (ACTUAL == PREDICTED)[:, None].astype(float)), samples=2, seed=0
    )
    assert reliability["error"] == pytest.approx(expected.value, abs=1e-6)  # the normal distribution in the page: 1e-7
    _, groups, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)  # of equal confidence
    errors = np.bincount(groups, weights=ACTUAL != PREDICTED) / sizes
    risks = errors[np.sort(groups)].cumsum() / np.arange(1, ROWS + 1)
    assert curve["risks"] == pytest.approx(risks)
    assert curve["area"] == pytest.approx(risks.mean())
    assert equal == pytest.approx([0, 1 / 3, 4 / 9, 1 / 2])  # the order of equal confidences says nothing


def test_the_reliability_of_one_label_and_of_all_labels(single_label: Any, multi_label: Any) -> None:
    def shown(page: Any, labels: list[int]) -> float:
        return float(page.evaluate(f"reliabilityOf(byProbability(currentSlice, {labels})).error"))

    def expected(probabilities: np.ndarray, labels: np.ndarray) -> float:
        value = calibration_error(Confidences(probabilities, labels.astype(float)), samples=2, seed=0).value
        assert value is not None
        return value

    page = single_label
    assert shown(page, [1]) == pytest.approx(expected(PROBABILITIES[:, [1]], ACTUAL[:, None] == 1), abs=2e-3)  # 16 bits
    options = page.eval_on_selector_all("#reliability-label option", "options => options.map((option) => option.text)")
    assert options == ["the predicted label", *NAMES]
    page.select_option("#reliability-label", "1")
    text = page.inner_text("#reliability-text")
    assert text.startswith("Share of the rows that have the label by its probability, with 95 % intervals.")
    assert f"error {shown(page, [1]):.3f} (10 bins of equally many probabilities, 300 rows)" in text
    page.select_option("#reliability-label", "")
    assert page.inner_text("#reliability-text").startswith("Accuracy by the probability of the predicted class")
    pooled = expected(np.where(PREDICTED_SETS, 0.9, 0.1), SETS)
    assert shown(multi_label, [0, 1, 2]) == pytest.approx(pooled, abs=2e-3)
    assert f"error {pooled:.3f} (10 bins of equally many probabilities, 80 rows)" in multi_label.inner_text(
        "#reliability-text"
    )
    assert not multi_label.query_selector("#coverage-chart")


def test_threshold_curves_are_those_of_the_rows(multi_label: Any) -> None:
    def expected(actual: np.ndarray, threshold: float) -> list[float | None]:
        chosen = np.where(predicted, 0.9, 0.1) >= threshold
        hits = (chosen & (actual == 1)).sum()
        precision = hits / chosen.sum() if chosen.any() else None
        return [precision, hits / actual.sum(), 2 * hits / (chosen.sum() + actual.sum())]

    page = multi_label
    curves = [page.evaluate(f"thresholdCurves(currentSlice, {labels})") for labels in ([0, 1, 2], [1])]
    page.select_option("#threshold-label", "1")
    text = page.inner_text("#threshold-text")
    page.evaluate("setState({ text: 'no such text' })")
    wait_until(page, "() => document.querySelector('#threshold-text').textContent.startsWith('No chosen row')")
    for curve, columns in zip(curves, ([0, 1, 2], [1]), strict=True):
        actual, predicted = SETS[:, columns], PREDICTED_SETS[:, columns]
        for step in (0, 5, 50, 85, 95):
            shown = [curve[name][step] for name in ("precision", "recall", "f1")]
            assert shown == pytest.approx(expected(actual, step / 100))
    assert f"At 0.5, F1 is {curves[1]['f1'][50]:.3f}" in text


def test_rows_of_equal_length_are_in_one_group(single_label: Any) -> None:
    page = single_label
    groups = page.evaluate("lengthGroups(currentSlice).map((group) => [...group])")
    scores = page.evaluate("lengthGroups(currentSlice).map(groupScore)")
    assert sorted(row for group in groups for row in group) == list(range(ROWS))
    assert len(groups) == 8
    lengths = [{len(TEXTS[row]) for row in group} for group in groups]
    assert all(max(first) < min(second) for first, second in pairwise(lengths))
    right = ACTUAL == PREDICTED
    assert [score["value"] for score in scores] == pytest.approx([right[group].mean() for group in groups])


def test_at_most_two_thousand_values_are_drawn(regression: Any) -> None:
    page = regression
    first, second = (page.evaluate("[...fixedSample(currentSlice)]") for _ in range(2))
    text = page.inner_text("#value-text")
    groups = page.evaluate("lengthGroups(currentSlice).map((group) => [groupScore(group).value, [...group]])")
    scores = table_texts(page, "score-table")
    assert first == second
    assert 1800 < len(set(first)) <= 2000
    assert f"A fixed sample of {len(first):,} rows is drawn." in text
    errors = np.abs(VALUES - PREDICTED_VALUES)
    assert [value for value, _ in groups] == pytest.approx([errors[group].mean() for _, group in groups], rel=1e-5)
    assert [row[0] for row in scores] == [
        "mean squared error", "other score", "mean absolute error", "pearson", "spearman", "loss",
    ]  # fmt: skip
