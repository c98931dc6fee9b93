from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.browser import chromium, needs_chromium, opened, serious_violations, wait_until
from tests.support.row_pages import single_label_table, write_rows_page

pytestmark = needs_chromium

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1"]
NAMES = ["no", "yes"]
ERRORS = [3, 41, 7]  # positions of likely label errors


def table_of(rows: int) -> pa.Table:
    """Return predictions whose first texts are formulas."""
    random = np.random.default_rng(0)
    positive = np.clip(random.permutation(np.linspace(0.02, 0.98, rows)), 0.02, 0.98)
    labels = (positive > random.uniform(size=rows)).astype(int)
    texts = [*FORMULAS, *(f'text "{row}"' for row in range(len(FORMULAS), rows))]
    return single_label_table(np.stack([1 - positive, positive], axis=1), labels, NAMES, texts)


def cells(page: Any, column: int) -> list[str]:
    return [text.strip() for text in page.locator(f"#row-table tbody td:nth-child({column})").all_inner_texts()]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows_page(tmp_path_factory.mktemp("page") / "page.html", table_of(50), NAMES, label_errors=ERRORS)


@pytest.fixture
def page(browser: Any, path: Path) -> Iterator[Any]:
    with opened(browser, path) as started:
        yield started


def test_the_header_sorts_and_pages_show_all_rows(page: Any) -> None:
    table = table_of(50)
    loss = np.round(np.sort(table["loss"].to_numpy())[::-1], 2)
    assert np.allclose([float(value) for value in cells(page, 6)], loss[:20], atol=0.01)
    assert page.locator("#row-table th[aria-sort]").inner_text() == "loss"
    page.click("#row-table th button >> text=confidence")
    assert page.locator("#row-table th[aria-sort=descending]").inner_text() == "confidence"
    assert page.evaluate("document.activeElement.textContent") == "confidence"
    page.keyboard.press("Enter")
    page.wait_for_selector("#row-table th[aria-sort=ascending]")
    shown = cells(page, 5)
    for number in (2, 3):
        page.click("#row-next")
        page.wait_for_selector(f"#row-page >> text=Page {number} of 3")
        shown += cells(page, 5)
    assert shown == sorted(shown)
    assert len(shown) == 50
    assert page.inner_text("#row-page") == "Page 3 of 3"
    assert page.locator("#row-next").is_disabled()
    assert "sort=confidence&page=3" in page.url


def test_views_show_errors_and_likely_label_errors(page: Any) -> None:
    page.click("text=Most confident errors")
    labels, predicted, confidence = (cells(page, column) for column in (3, 4, 5))
    assert all(label != other for label, other in zip(labels, predicted, strict=True))
    assert confidence == sorted(confidence, reverse=True)
    page.click("text=Likely label errors")
    shown = page.locator("#row-table tbody tr")
    assert [shown.nth(index).get_attribute("data-position") for index in range(shown.count())] == ["3", "41", "7"]
    assert "Northcutt" in page.inner_text("#row-rule")
    assert page.locator("#errors [aria-pressed=true]").all_inner_texts() == ["Likely label errors"]
    page.evaluate("setState({ length: '900-' })")
    wait_until(page, "() => document.querySelectorAll('#row-table tbody tr').length === 0")
    assert page.inner_text("#row-count") == "No rows."


def test_a_row_is_chosen_by_click_and_by_keyboard(page: Any) -> None:
    page.click("#row-table tbody tr:nth-child(2) td:nth-child(2)")
    first = page.url
    assert "row=" in first
    assert page.locator("#row-table tr.chosen").count() == 1
    page.locator("#row-table .row-name").nth(4).press("Enter")
    position = page.evaluate("Number(getState('row'))")
    assert page.url != first
    assert (
        page.inner_text("#row-details .row-text") == table_of(50)["text"][position].as_py().replace("\t", " ").strip()
    )
    values = [float(text) for text in page.locator("#row-details td:nth-child(3)").all_inner_texts()]
    assert np.allclose(values, sorted(table_of(50)["probabilities"][position].as_py(), reverse=True), atol=1e-4)
    assert serious_violations(page) == []
    page.click("text=Close")
    assert page.locator("#row-details").is_hidden()
    assert page.evaluate("document.activeElement.closest('tr').dataset.position") == str(position)


def test_a_link_to_a_row_shows_it_and_keeps_the_slice(page: Any) -> None:
    page.evaluate("setState({ label: 'no' })")
    page.evaluate("document.querySelector('h1').append(element('a', { href: '#row=41', 'data-row': '41' }, 'a row'))")
    page.click("a[data-row]")
    wait_until(page, "() => document.activeElement.id === 'row-details'")
    assert page.inner_text("#row-details h3") == f"test row {table_of(50)['row'][41].as_py()}"
    assert "label=no" in page.url
    assert "row=41" in page.url


def test_the_last_page_does_not_take_the_focus_away(page: Any) -> None:
    page.evaluate("setState({view: null, sort: null, page: null, split: 'all'})")
    for button, focused in (("last", "previous"), ("first", "next")):
        page.locator(f"#row-{button}").press("Enter")
        wait_until(page, "(id) => document.activeElement.id === id", arg=f"row-{focused}")


def test_the_rows_of_the_slice_are_saved_without_formulas(browser: Any, path: Path, tmp_path: Path) -> None:
    with opened(browser, path, fragment="#label=no&sort=row") as page:
        with page.expect_download() as download:
            page.click("#row-download")
        download.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        saved = list(csv.DictReader(file))
    expected = [row for row in table_of(50).to_pylist() if row["label"] == "no"]
    assert len(saved) == len(expected)
    for line, row in zip(saved, expected, strict=True):
        assert line["text"] == ("'" if row["text"] in FORMULAS else "") + row["text"]
        assert (line["split"], int(line["row"]), line["predicted"]) == ("test", row["row"], row["predicted"])
        assert float(line["probability yes"]) == pytest.approx(row["probabilities"][1], abs=1e-4)
        assert float(line["loss"]) == pytest.approx(row["loss"], abs=1e-3)
    assert any(line["text"].startswith("'=") for line in saved)


def test_regression_rows_are_sorted_by_error(browser: Any, tmp_path: Path) -> None:
    columns = {
        "split": ["test"] * 3, "row": [1, 2, 3], "text": ["a", "b", "c"], "label": [1.0, -2.0, 3.0],
        "predicted": [1.5, -4.0, 3.25], "probabilities": [[1.5], [-4.0], [3.25]], "loss": [0.25, 4.0, 0.0625],
    }  # fmt: skip
    page_path = write_rows_page(tmp_path / "page.html", pa.table(columns), [])
    with opened(browser, page_path, fragment="#sort=label") as page:
        assert cells(page, 3) == ["-2.000", "1.000", "3.000"]
        page.click("#row-table th button >> text=error")
        assert cells(page, 5) == ["2.000", "0.500", "0.250"]
        assert page.locator("#errors [data-view]:visible").count() == 1
        assert page.locator("#slice-label").is_hidden()
        assert page.evaluate("csvFile(tableRows).then((file) => file.text())").splitlines()[1] == '"test",2,"b",-2,-4,4'
