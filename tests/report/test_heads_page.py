"""The head sections of the report in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from finetune.report import write_report
from finetune.runs.head_results import HeadScores
from finetune.runs.json_files import write_json
from finetune.runs.run_folder import RunFolder
from tests.support.browser import chromium, needs_chromium, opened, serious_violations
from tests.support.known_run import full_analysis, known_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with two methods that rank the heads differently."""
    folder = known_run(tmp_path_factory.mktemp("heads") / "known")
    analysis = full_analysis(2)
    first = analysis.methods[0]
    values = [[0.25] * 12, [0.5, *[-0.125] * 10, None]]
    second = HeadScores("gradient", "E|g|", "train", 40, values, first.standard_errors, first.order)
    write_json(folder.heads, replace(analysis, methods=[first, second]))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def cell(page: Any, head: str) -> Any:
    return page.locator(f'#head-importance [data-head="{head}"]')


def test_a_head_is_chosen_by_mouse_and_by_keyboard(run: RunFolder, browser: Any) -> None:
    with opened(browser, run.report) as page:
        heading = page.locator("#chosen-head h3")
        assert heading.inner_text() == "Layer 1, head 10"  # the most important one until the reader chooses
        cell(page, "0.3").click()
        assert heading.inner_text() == "Layer 0, head 3"
        assert page.evaluate("location.hash") == "#head=0.3"
        assert cell(page, "0.3").get_attribute("aria-selected") == "true"
        assert page.locator('[aria-selected="true"]').count() == 4  # in each map
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert page.locator("#heads .head-readout").inner_text().startswith("layer 1, head 4: 0.14 ± 0.14, rank")
        assert heading.inner_text() == "Layer 0, head 3"  # moving does not choose
        page.keyboard.press("Enter")
        assert heading.inner_text() == "Layer 1, head 4"
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")  # layer 1 has no head 11
        page.keyboard.press(" ")
        assert heading.inner_text() == "Layer 1, head 10"


def test_the_method_in_the_address_is_shown_with_its_values(run: RunFolder, browser: Any) -> None:
    with opened(browser, run.report, fragment="#method=gradient&head=1.0") as page:
        assert page.input_value("#method") == "gradient"
        assert [cell(page, head).inner_text() for head in ("0.0", "1.0", "1.1")] == ["50", "100", "-25"]
        assert "0.5 ± 0.14, rank 11 of 23" in page.locator("#chosen-head").inner_text()
        assert "gradient (E|g|), 40 train rows" in page.locator("#head-map-note").inner_text()
        page.select_option("#method", "leave_one_out")
        assert cell(page, "1.0").inner_text() == "-10.0"
        assert "method=leave_one_out" in page.evaluate("location.hash")


@pytest.mark.parametrize("dark", [False, True])
def test_the_sections_are_accessible_and_fit_on_a_phone(run: RunFolder, browser: Any, dark: bool) -> None:
    with opened(browser, run.report, phone=True, dark=dark) as page:
        page.locator("#pruning-curves").scroll_into_view_if_needed()
        page.wait_for_selector("#pruning-curves svg")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        found = serious_violations(page)
        assert found == []
