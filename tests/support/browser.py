"""Pages in headless Chromium: opened from a file, with every console error and network request recorded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import HANG_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_PHONE = {"width": 390, "height": 844}
_DESK = {"width": 1280, "height": 900}


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, as a Playwright `Browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=_FLAGS, timeout=1000 * HANG_SECONDS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, fragment: str = "", phone: bool = False, dark: bool = False) -> Iterator[Any]:
    """A Playwright `Page` of a file, after its scripts have started; fails at an error or a request to the network."""
    problems: list[str] = []
    page = browser.new_page(viewport=_PHONE if phone else _DESK, color_scheme="dark" if dark else "light")
    page.set_default_timeout(1000 * HANG_SECONDS)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "blob:")) else problems.append(request.url)
    )
    page.goto(path.absolute().as_uri() + fragment)
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page
    page.close()
    assert problems == [], problems


def wait_until(page: Any, expression: str, arg: object = None) -> None:
    """Wait until a JavaScript expression, or a function of `arg`, is true in a page.

    `Page.wait_for_function` evaluates its text inside the page, which the policy of our pages forbids: it fails unless
    the first check is already true.
    """
    limit = time.monotonic() + HANG_SECONDS
    while not page.evaluate(expression, arg):
        assert time.monotonic() < limit, f"never true: {expression}"
        page.wait_for_timeout(20)


def serious_violations(page: Any) -> list[str]:
    """Return the serious and critical findings of axe-core on a page, as "rule: first element"."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]
