"""The head sections of the report in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from finetune.report import write_report
from finetune.report.page import render_report
from finetune.report.run_record import read_record
from finetune.runs.explanations import write_explanations
from finetune.runs.head_results import HeadScores
from finetune.runs.json_files import write_json
from finetune.runs.run_folder import RunFolder
from tests.support.browser import chromium, needs_chromium, opened, serious_violations
from tests.support.known_run import HOSTILE_TOKENS, full_analysis, known_explanations, known_run

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with two methods that rank the heads differently."""
    folder = known_run(tmp_path_factory.mktemp("heads") / "known")
    analysis = full_analysis(2)
    first = analysis.methods[0]
    values = [[0.25] * 12, [0.5, *[-0.125] * 10, None]]
    second = HeadScores("ablation_loss", "rise of the loss", "train", 40, values, first.standard_errors, first.order)
    write_json(folder.heads, replace(analysis, methods=[first, second]))
    write_explanations(folder, known_explanations())
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
        assert page.locator('[aria-selected="true"]').count() == 5  # in each map
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
    with opened(browser, run.report, fragment="#method=ablation_loss&head=1.0") as page:
        assert page.input_value("#method") == "ablation_loss"
        assert [cell(page, head).inner_text() for head in ("0.0", "1.0", "1.1")] == ["50", "100", "-25"]
        assert "0.5 ± 0.14, rank 11 of 23" in page.locator("#chosen-head").inner_text()
        assert "ablation loss (rise of the loss), 40 train rows" in page.locator("#head-map-note").inner_text()
        page.select_option("#method", "leave_one_out")
        assert cell(page, "1.0").inner_text() == "-10.0"
        assert "method=leave_one_out" in page.evaluate("location.hash")


def test_the_partner_of_a_redundant_head_is_marked_and_chosen_by_a_click(run: RunFolder, browser: Any) -> None:
    with opened(browser, run.report, fragment="#method=names&head=0.1") as page:
        assert [cell(page, head).inner_text() for head in ("0.1", "0.3", "1.10")] == ["R", "", "R E"]
        assert [each.get_attribute("data-head") for each in page.locator("#heads .partner").all()] == ["1.10"]
        assert "redundant with layer 1, head 10 (q-value 0.001)" in page.locator("#chosen-head").inner_text()
        page.locator("#chosen-head").get_by_role("button", name="layer 1, head 10").click()
        assert page.locator("#chosen-head h3").inner_text() == "Layer 1, head 10"
        assert [each.get_attribute("data-head") for each in page.locator("#heads .partner").all()] == ["0.1"]
        cell(page, "0.0").click()
        assert page.locator("#heads .partner, .partner-line").count() == 0


def test_a_head_shows_its_rows_labels_and_attention(run: RunFolder, browser: Any) -> None:
    with opened(browser, run.report, fragment="#head=0.10") as page:
        panel = page.locator("#chosen-head-rows")
        needed, hurt = (panel.locator("table").nth(number) for number in (0, 1))
        assert needed.locator("tbody td:first-child").all_inner_texts() == [f"+{row}.000" for row in (8, 7, 6, 5, 4)]
        assert hurt.locator("tbody td:first-child").all_inner_texts() == ["-3.000", "-2.000", "-1.000"]
        assert needed.locator("button").first.inner_text() == "text 11 <script>alert(11)</script>"
        label = panel.locator(".label-effects .chart").get_attribute("aria-label")
        assert label == "Mean effect by label: yes +3.500 ± 2.2"  # rows 3 to 12; two rows are too few
        assert "The attention of this head is not stored for this row" in panel.inner_text()
        panel.get_by_role("button", name="1.2", exact=True).click()
        assert page.locator("#chosen-head h3").inner_text() == "Layer 1, head 2"
        panel.locator("summary").click()
        table = panel.locator("details table")
        assert table.locator("tbody tr").nth(1).inner_text().split("\t") == ["</script>", "</script>", "61 %"]
        assert table.locator("tbody tr").first.inner_text().split("\t") == ["[CLS]", "[CLS]", "100 %"]
        panel.locator("summary").scroll_into_view_if_needed()
        page.wait_for_selector("#chosen-head-rows [aria-label^=Attention] svg")


def test_a_row_shows_its_tokens_and_heads(run: RunFolder, browser: Any) -> None:
    with opened(browser, run.report) as page:
        panel = page.locator("#chosen-row")
        assert panel.locator("h3").inner_text() == "Row test 2: why “no”"
        page.locator("#explained-rows").get_by_role("button", name="test 3").click()
        assert page.evaluate("location.hash") == "#row=2"  # the position in the predictions
        assert panel.locator("h3").inner_text() == "Row test 3: why “yes”"
        shown = panel.locator(".tokens span")
        words = [token.removeprefix("##") for token in HOSTILE_TOKENS]
        words[3:5] = ["[U+202E]abc", "␀&amp;"]  # control characters are made visible
        assert shown.all_text_contents() == words
        assert [shown.nth(index).get_attribute("title") for index in (1, 2)] == ["+0.500", "-1.000"]
        for words in ("Score (log-odds of the label “yes”): +1.500", "the completeness gap is +0.063"):
            assert words in panel.inner_text()
        assert panel.locator('[data-head="0.10"]').get_attribute("title") == "effect -2.000"  # exact
        assert panel.locator('[data-head="0.11"]').inner_text() == "-100"
        page.locator("#row-details").get_by_role("link", name="Which heads and tokens this row depends on").click()
        assert page.evaluate("document.activeElement.id") == "chosen-row"
        setting = "setState({{row: '{}'}})"
        page.evaluate(setting.format(11))
        panel.get_by_text("The tokens of this row were not explained.").wait_for()
        assert panel.locator('[data-head="0.11"]').get_attribute("title") == "effect +8.800"  # first-order
        assert "text 11 <script>alert(11)</script>" in panel.inner_text()
        page.evaluate(setting.format(13))  # the last row has no explanation
        panel.get_by_text("The chosen row was not among the rows on which the heads were analyzed.").wait_for()


def test_a_run_without_explanations_says_how_to_get_them(run: RunFolder, browser: Any) -> None:
    run.explanations.rename(run.explanations.with_suffix(".away"))
    page_without = run.path / "without.html"
    try:
        record = read_record(run)
    finally:
        run.explanations.with_suffix(".away").rename(run.explanations)
    page_without.write_text(render_report(record, "old", ""))
    assert "This run has no explanations of single rows" in page_without.read_text()
    with opened(browser, page_without, fragment="#row=2&head=0.3") as page:
        assert page.locator("#chosen-head h3").inner_text() == "Layer 0, head 3"


def test_a_copy_without_texts_shows_effects_only(run: RunFolder, browser: Any) -> None:
    copy = run.path / "copy.html"
    copy.write_text(render_report(read_record(run).without_texts(), "copy", ""))
    assert "img src=x" not in copy.read_text()
    with opened(browser, copy, fragment="#row=1") as page:
        panel = page.locator("#chosen-row")
        panel.get_by_text("This copy of the report contains no tokens.").wait_for()
        assert panel.locator('[data-head="0.10"]').get_attribute("title") == "effect -4.000"


@pytest.mark.parametrize("dark", [False, True])
def test_the_sections_are_accessible_and_fit_on_a_phone(run: RunFolder, browser: Any, dark: bool) -> None:
    with opened(browser, run.report, phone=True, dark=dark) as page:
        page.locator("#pruning-curves").scroll_into_view_if_needed()
        page.wait_for_selector("#pruning-curves svg")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        found = serious_violations(page)
        assert found == []
