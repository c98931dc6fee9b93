from __future__ import annotations

import base64
import gzip
import hashlib
from importlib.resources import files

from finetune.report.embedding import embedded, script


def test_embedded_bytes_are_compressed_and_come_back() -> None:
    content = bytes(range(256)) * 100
    html = embedded("rows", content)
    start, end = html.index(">") + 1, html.rindex("<")
    assert gzip.decompress(base64.b64decode(html[start:end])) == content
    assert len(html) < len(content) / 10
    assert html == embedded("rows", content)  # nothing depends on the time


def test_the_chart_library_is_the_file_that_its_page_names() -> None:
    vendor = files("finetune.report") / "vendor"
    digest = hashlib.sha256((vendor / "echarts.min.js").read_bytes()).hexdigest()
    assert f"`{digest}`" in (vendor / "README.md").read_text()


def test_no_script_ends_the_element_that_contains_it() -> None:
    for name in (each.name for each in (files("finetune.report") / "scripts").iterdir()):
        assert "</script" not in script(name)
