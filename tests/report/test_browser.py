"""The whole report in Chromium: themes, phone, paper, keyboard, address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.report import write_report
from finetune.runs.json_files import append_line, write_json
from finetune.runs.run_folder import RunFolder
from tests.support.baselines import COMPARISON
from tests.support.browser import chromium, needs_chromium, opened, serious_violations, wait_until
from tests.support.known_run import full_analysis, known_run

pytestmark = needs_chromium
FITS = "document.documentElement.scrollWidth <= window.innerWidth"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with every part of a report."""
    folder = known_run(tmp_path_factory.mktemp("browser") / "known")
    write_json(folder.heads, full_analysis(7))
    write_json(folder.baselines, COMPARISON)
    append_line(folder.history, {"step": 3, "loss": 0.1, "learning_rate": 0.0, "grad_norm": 2.5, "eval_accuracy": 0.5})
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def show_all_charts(page: Any) -> None:
    """Scroll to every chart and wait until it is drawn."""
    places = page.locator(".chart")
    for index in range(places.count()):
        if places.nth(index).is_visible():
            places.nth(index).scroll_into_view_if_needed()
            places.nth(index).locator("svg").wait_for(state="attached")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious_and_every_chart_is_drawn(browser: Any, run: RunFolder, dark: bool) -> None:
    with opened(browser, run.report, dark=dark) as page:
        show_all_charts(page)
        assert page.evaluate("currentTheme()") == ("dark" if dark else "light")
        assert page.locator("#training .chart svg").count() == 4
        assert serious_violations(page) == []
        assert page.evaluate(FITS)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, run: RunFolder) -> None:
    with opened(browser, run.report, phone=True) as page:
        show_all_charts(page)
        assert page.evaluate(FITS)
        assert not page.locator("#links").is_visible()
        page.click("#menu")
        page.locator("#links a", has_text="Training").click()
        assert page.evaluate("document.activeElement.id") == "training"
        assert not page.locator("#links").is_visible()
        wide = page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => e.tabIndex)"
        )
        assert wide
        assert set(wide) == {0}  # each can be scrolled with the keyboard


def test_paper_is_light_and_has_every_chart(browser: Any, run: RunFolder) -> None:
    with opened(browser, run.report, dark=True) as page:
        wait_until(page, "typeof echarts !== 'undefined'")  # loaded although no chart is on the screen
        page.emulate_media(media="print")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        missing = page.evaluate("[...document.querySelectorAll('[data-option]')].filter(e => !e.querySelector('svg'))")
        assert missing == []
        assert page.evaluate("document.querySelectorAll('[data-option] svg').length") >= 4
        assert page.evaluate("currentTheme()") == "light"
        assert not page.locator(".bar").is_visible()
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("currentTheme()") == "dark"


def test_the_keyboard_reaches_content_menu_theme_and_tables(browser: Any, run: RunFolder) -> None:
    with opened(browser, run.report) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        assert page.evaluate("location.hash") == ""  # the address holds the state of the page only
        page.locator("#links a").first.focus()
        for _ in range(page.locator("#links a").count()):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "theme"
        page.keyboard.press("Enter")
        assert page.get_attribute("#theme", "aria-pressed") == "true"


def test_a_table_is_sorted_by_the_button_of_a_column(browser: Any, run: RunFolder) -> None:
    with opened(browser, run.report) as page:
        page.evaluate(
            """document.getElementById("content").append(element("table", { id: "sorted" },
              element("thead", {}, element("tr", {}, element("th", { "data-sort": "" }, "value"))),
              element("tbody", {}, ...["10", "–", "9", "0.5"].map((text) =>
                element("tr", {}, element("td", {}, text))))));
            makeSortable(document.getElementById("sorted"))"""
        )
        button = page.locator("#sorted button")
        texts = "[...document.querySelectorAll('#sorted td')].map(cell => cell.textContent)"
        button.press("Enter")
        assert page.evaluate(texts) == ["0.5", "9", "10", "–"]
        assert page.get_attribute("#sorted th", "aria-sort") == "ascending"
        button.press("Enter")
        assert page.evaluate(texts) == ["10", "9", "0.5", "–"]


def test_an_address_gives_the_same_view_again(browser: Any, run: RunFolder) -> None:
    with opened(browser, run.report) as page:
        page.select_option("#slice-outcome", "wrong")
        size, address = page.inner_text("#slice-size"), page.evaluate("location.hash")
    assert address
    with opened(browser, run.report, fragment=address) as page:
        assert page.inner_text("#slice-size") == size
        assert page.input_value("#slice-outcome") == "wrong"


def test_the_first_view_does_not_wait_for_the_data(run: RunFolder) -> None:
    html = Path(run.report).read_text(encoding="utf-8")
    assert html.index("</main>") < html.index('id="chart-library"')
    assert len(html) < 1_500_000
