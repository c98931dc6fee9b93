from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from finetune.report.charts import chart_element
from finetune.report.page import templates
from tests.support.browser import chromium, needs_chromium, opened, wait_until

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"
OPTION = {
    "xAxis": {"type": "category", "data": ["a", HOSTILE]},
    "yAxis": {"type": "value"},
    "series": [{"type": "bar", "data": [1, 2]}],
}


class Attributes(HTMLParser):
    """The attributes of the first element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.first: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.first = self.first or dict(attrs)


def test_a_chart_element_holds_its_option_and_label() -> None:
    found = Attributes(chart_element(OPTION, 300, HOSTILE)).first
    assert found is not None
    assert json.loads(found["data-option"] or "") == OPTION
    assert found["aria-label"] == HOSTILE
    assert found["style"] == "height: 300px"


@needs_chromium
def test_a_chart_is_drawn_in_the_colors_of_the_theme(tmp_path: Path) -> None:
    page = templates().from_string(
        "{% extends 'base.html' %}{% block main %}<h1>{{ name }}</h1>{{ chart }}{% endblock %}"
    )
    path = tmp_path / "page.html"
    path.write_text(page.render(name=HOSTILE, chart=chart_element(OPTION, 300, "bars")))
    with chromium() as browser, opened(browser, path) as opened_page:
        opened_page.wait_for_selector(".chart svg")
        assert opened_page.inner_text("h1") == HOSTILE
        assert HOSTILE in opened_page.inner_html(".chart svg").replace("&gt;", ">").replace("&lt;", "<").replace(
            "&amp;", "&"
        )
        light = opened_page.evaluate("color('blue')")
        opened_page.click("#theme")
        assert opened_page.evaluate("color('blue')") != light
        wait_until(opened_page, "document.querySelector('.chart svg').innerHTML.includes(color('blue'))")


def test_the_policy_of_a_page_forbids_every_request() -> None:
    html = templates().from_string("{% extends 'base.html' %}").render()
    policy = html.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert {source for sources in rules.values() for source in sources.split()} <= {"'unsafe-inline'", "data:", "blob:"}
