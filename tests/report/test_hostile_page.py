from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import chromium, needs_chromium, opened, wait_until
from tests.support.hostile_run import HOSTILE_LABELS, HOSTILE_NAME, HOSTILE_TEXTS, write_hostile_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report of a run whose name, labels and texts are hostile."""
    run = write_hostile_run(tmp_path_factory.mktemp("hostile"))
    with chromium() as browser, opened(browser, run.report) as started:
        yield started
        assert started.evaluate("window.attacked === undefined")


def test_hostile_texts_are_shown_as_text(page: Any) -> None:
    shown = page.evaluate("Promise.all(rows.label.reduce((all, _, i) => [...all, rows.text(i)], []))")
    assert shown == HOSTILE_TEXTS
    for position in range(len(HOSTILE_TEXTS)):
        page.evaluate("(row) => setState({ row })", position)
        wait_until(page, "(row) => document.querySelector(`#row-table [data-position='${row}']`)"
                               ".classList.contains('chosen')", arg=position)  # fmt: skip
        wait_until(
            page,
            "([row, text]) => document.querySelector('#row-details .row-text')?.textContent === visibleText(text)",
            arg=[position, HOSTILE_TEXTS[position]],
        )
    losses = page.evaluate("[...tableRows].map((position) => rows.loss[position])")
    assert losses == sorted(losses, reverse=True)
    assert len(set(page.evaluate("[...tableRows]"))) == len(HOSTILE_TEXTS)
    cells = page.locator("#row-table tbody td.words").all_text_contents()
    assert any(cell.startswith("</script><script>") for cell in cells)
    assert "[U+202E]txt.exe" in cells
    assert "␀␇␛[31m" in cells
    assert max(map(len, cells)) < 300  # of 100,000 characters


def test_hostile_labels_are_shown_as_text(page: Any) -> None:
    assert page.locator("#slice-label option").all_text_contents() == ["any", *HOSTILE_LABELS]
    page.select_option("#slice-label", HOSTILE_LABELS[1])
    wait_until(page, "() => currentSlice.length === 3")
    labels = set(page.locator("#row-table tbody td:nth-child(3)").all_text_contents())
    assert labels == {HOSTILE_LABELS[1]}
    page.click("#slice-reset")


def test_the_page_has_no_element_of_the_data(page: Any) -> None:
    assert page.locator("img, iframe, object, embed, base, form").count() == 0
    assert page.evaluate("[...document.scripts].filter((each) => each.src).length") == 0
    assert HOSTILE_NAME in page.title()
    assert page.inner_text("h1") == HOSTILE_NAME


def test_a_hostile_address_changes_nothing(page: Any) -> None:
    hostile = (
        "#label=<img src=x onerror=attacked=1>&row=1e9&page=-5&sort=</script>&view=__proto__&text=[&confidence=a-b"
    )
    page.evaluate("(fragment) => { location.hash = fragment }", hostile)
    wait_until(page, "() => currentSlice.length === 0")
    page.evaluate("setState({ sort: null })")
    assert page.inner_text("#slice-size").startswith("0 of ")
    assert "<img src=x" in page.inner_text("#slice-conditions")
    page.click("#slice-reset")
    wait_until(page, "() => currentSlice.length > 0")
