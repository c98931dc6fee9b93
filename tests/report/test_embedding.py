from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections import defaultdict
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


def test_no_name_of_the_shared_scope_is_defined_in_two_scripts() -> None:
    places = defaultdict(list)
    definition = re.compile(r"^(?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)
    for file in (files("finetune.report") / "scripts").iterdir():
        for name in definition.findall(file.read_text(encoding="utf-8")):
            places[name].append(file.name)
    assert len(places) > 50
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
