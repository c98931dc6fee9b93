"""Scripts and data inside an HTML page, so that the page is one file that needs no network."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib.resources import files

from markupsafe import Markup


def embedded(name: str, content: bytes) -> Markup:
    """Return an HTML element that contains bytes, compressed; `unpack(name)` in `core.js` reads them.

    Args:
        name: the id of the element, made of letters, digits and hyphens.
    """
    return Markup('<script type="application/octet-stream" id="{}">{}</script>').format(name, _compressed(content))


@cache
def chart_library() -> Markup:
    """Return the element that contains the chart library, which `chart.js` loads before the first chart."""
    return embedded("chart-library", (files("finetune.report") / "vendor/echarts.min.js").read_bytes())


@cache
def script(name: str) -> Markup:
    """Return the content of a file of `scripts/`, as it stands in the page."""
    return Markup((files("finetune.report") / "scripts" / name).read_text(encoding="utf-8"))


def _compressed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode("ascii")
