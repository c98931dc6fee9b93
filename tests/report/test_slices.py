from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest

from finetune.report.weak_slices import find_weak_slices
from tests.report.test_weak_slices import weak_table
from tests.support.browser import chromium, needs_chromium, opened, serious_violations, wait_until
from tests.support.row_pages import single_label_table, write_rows_page

pytestmark = needs_chromium

NAMES = ["negative", "positive"]
TEXTS = ["A dull film", "a good Film (really)", "naïve café", "caf", "a dull, dull cat", "42"]
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.05, 0.95], [0.55, 0.45]])
LABELS = np.array([0, 1, 1, 1, 0, 0])
ROWS = [
    ("", [0, 1, 2, 3, 4, 5]),
    ("label=positive", [1, 2, 3]),
    ("predicted=positive", [1, 3, 4]),
    ("outcome=wrong", [2, 4]),
    ("outcome=right&label=positive", [1, 3]),
    ("confidence=80-", [0, 1, 4]),
    ("confidence=-60", [2, 5]),
    ("confidence=60-90", [0, 1, 2, 3]),
    ("length=4-11", [0, 2]),
    ("text=" + quote("\\bfilm\\b"), [0, 1]),
    ("text=" + quote("\\bcaf\\b"), [3]),  # the boundary of words of any script
    ("text=" + quote("^a dull") + "&outcome=wrong", [4]),
    ("text=" + quote("(really"), [0, 1, 2, 3, 4, 5]),  # invalid, hence ignored
    ("split=all", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ("split=validation&label=negative", [6, 10, 11]),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Any]:
    """A page with six rows in each of two splits."""
    test, validation = (
        single_label_table(PROBABILITIES, LABELS, NAMES, TEXTS, split) for split in ("test", "validation")
    )
    path = write_rows_page(tmp_path_factory.mktemp("page") / "page.html", pa.concat_tables([test, validation]), NAMES)
    with opened(browser, path) as started:
        yield started


@pytest.fixture
def slice_of(page: Any) -> Callable[[str], list[int]]:
    """Return the rows that the page selects for a fragment of its address."""

    def selected(fragment: str) -> list[int]:
        change = """(fragment) => new Promise((resolve) => {
            sliceListeners.push((positions) => resolve([...positions]));
            location.hash = `different=${performance.now()}&${fragment}`;
        })"""
        return list(page.evaluate(change, fragment))

    return selected


@pytest.mark.parametrize(("fragment", "expected"), ROWS)
def test_the_address_selects_rows(slice_of: Callable[[str], list[int]], fragment: str, expected: list[int]) -> None:
    assert slice_of(fragment) == expected


def test_the_fields_show_and_change_the_address(page: Any, slice_of: Callable[[str], list[int]]) -> None:
    slice_of("label=positive&confidence=70-90")
    assert page.input_value("#slice-label") == "positive"
    assert page.input_value("#slice-confidence-low") == "70"
    assert page.inner_text("#slice-size") == "2 of 6 rows"
    page.select_option("#slice-label", "")
    page.fill("#slice-confidence-high", "")
    page.locator("#slice-confidence-high").dispatch_event("change")
    wait_until(page, "() => document.getElementById('slice-size').textContent === '4 of 6 rows'")
    page.fill("#slice-text", "dull")
    wait_until(page, "() => document.getElementById('slice-size').textContent === '2 of 6 rows'")
    assert "confidence=70-&text=dull" in page.url
    page.click("#slice-reset")
    wait_until(page, "() => document.getElementById('slice-size').textContent === '6 of 6 rows'")
    assert page.input_value("#slice-text") == ""
    assert page.locator("#slice-reset").is_disabled()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_an_invalid_expression_is_reported_beside_the_field(page: Any, slice_of: Callable[[str], list[int]]) -> None:
    slice_of("text=" + quote("(film"))
    message = page.inner_text("#slice-text-problem")
    assert message.startswith("This is not a valid regular expression, and is ignored: ")
    assert page.get_attribute("#slice-text", "aria-invalid") == "true"
    slice_of("text=film")
    assert page.inner_text("#slice-text-problem") == ""
    assert page.get_attribute("#slice-text", "aria-invalid") == "false"


def test_a_search_that_takes_too_long_is_stopped(page: Any, slice_of: Callable[[str], list[int]]) -> None:
    page.evaluate("searchSeconds = 0.2")
    page.evaluate("(source) => { location.hash = `text=${encodeURIComponent(source)}` }", r"^(\w+\s?)+$|^((.|\w)+)+#")
    problem = page.locator("#slice-text-problem")
    problem.filter(has_text="takes too long").wait_for()
    assert page.locator("#slice-size").text_content() == "6 of 6 rows"
    page.evaluate("searchSeconds = 60")
    assert slice_of("text=dull") == [0, 4]  # by a new worker
    assert problem.text_content() == ""


def test_the_bar_is_accessible(page: Any) -> None:
    assert serious_violations(page) == []


def test_multi_label_rows_and_pairs_are_selected_by_their_sets(tmp_path: Path, browser: Any) -> None:
    columns = {
        "split": ["test"] * 3, "row": [1, 2, 3], "text": ["a", "b", "c"], "text_1": ["d", "e", "f"],
        "label": [["x"], [], ["x", "y"]], "predicted": [["x"], ["y"], ["y"]],
        "probabilities": [[0.9, 0.2], [0.1, 0.6], [0.4, 0.7]], "loss": [0.1, 0.6, 0.3],
    }  # fmt: skip
    path = write_rows_page(tmp_path / "page.html", pa.table(columns), ["x", "y"])
    with opened(browser, path, fragment="#label=x&text=f") as page:
        assert page.evaluate("[...currentSlice]") == [2]
        page.evaluate("setState({ label: null, text: null, predicted: 'y' })")
        wait_until(page, "() => currentSlice.length === 2")
        assert page.evaluate("[...currentSlice]") == [1, 2]


def test_the_link_of_a_weak_slice_selects_its_rows(tmp_path: Path, browser: Any) -> None:
    table = pa.concat_tables([weak_table(400, "test"), weak_table(300, "validation")])
    weak = find_weak_slices(table, "test")
    assert weak is not None
    assert len(weak.slices) >= 2
    with opened(browser, write_rows_page(tmp_path / "page.html", table, ["no", "yes"])) as page:
        for each in weak.slices:
            change = """(fragment) => new Promise((resolve) => {
                sliceListeners.push((positions) => resolve(positions.length));
                location.hash = fragment;
            })"""
            assert page.evaluate(change, weak.fragment(each)) == each.rows, each.name()
