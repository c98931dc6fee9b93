"""The results that are kept with the project, and the tables of the performance guide, which are made from them.

tests/benchmarks/results/NAME.json has one short list per cell. The guide has a table between the comments
`<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.cells import Line
from tests.support import ROOT

RESULTS = ROOT / "tests/benchmarks/results"
GUIDE = ROOT / "finetune/docs/performance.md"
COLUMNS = ("data", "rows", "seed", "variant", "score", "steps", "train_seconds", "cpu_seconds")
COMMON = ("encoder", "precision", "threads", "device", "commit", "versions", "scored")  # of the cells, each value once


def keep(lines: Sequence[Line], file: Path) -> None:
    """Write the finished cells to a file: what cells have in common once, and one list per cell."""
    cells = {tuple(line[key] for key in COLUMNS[:4]): line for line in lines if "score" in line}
    finished = [cells[key] for key in sorted(cells)]
    dates = sorted(line["date"] for line in finished)
    document = {
        "dates": [dates[0], dates[-1]],
        "metrics": {line["data"]: line["metric"] for line in finished},
        **{key: distinct([line[key] for line in finished if key in line]) for key in COMMON},
        "variants": {line["variant"]: line["differs"] for line in finished},
        "columns": list(COLUMNS),
    }
    head = json.dumps(document, indent=1)[:-2]
    rows = [json.dumps([shortened(line[key]) for key in COLUMNS]) for line in finished]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + ',\n "cells": [\n' + ",\n".join(rows) + "\n ]\n}\n", encoding="utf-8")


def read_kept(file: Path) -> tuple[dict[str, Any], list[Line]]:
    """Return what the cells of a kept file have in common, and the cells."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return document, [dict(zip(document["columns"], cell, strict=True)) for cell in document.pop("cells")]


def distinct(values: Sequence[Any]) -> list[Any]:
    """Return each value once, in the order of their first appearance."""
    return [value for index, value in enumerate(values) if value not in values[:index]]


def shortened(value: Any) -> Any:
    """Return the value, a float with four decimals."""
    return round(value, 4) if isinstance(value, float) else value


def replace_block(text: str, name: str, content: str) -> str:
    """Return the text with new content between the comments of a name.

    A text without these comments gets them at its end.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}{end}\n"
    before, _, rest = text.partition(begin)
    return before + begin + content + "\n" + end + rest.partition(end)[2]


def block_names(text: str) -> list[str]:
    """Return the names of the generated tables of a guide."""
    return re.findall(r"^<!-- begin (\S+) -->$", text, re.MULTILINE)


def about(document: dict[str, Any], cells: Sequence[Line]) -> str:
    """Return a sentence about how the cells were measured."""
    seeds = sorted({cell["seed"] for cell in cells})
    scored = " or ".join(sorted({split for split, _ in document["scored"]}))
    largest = max(rows for _, rows in document["scored"])
    encoders = ", ".join(name.rpartition("/")[0].rpartition(":")[2] or name for name in document["encoder"])
    threads = " or ".join(map(str, document["threads"]))
    return (
        f"{len(cells)} runs with seeds {seeds[0]} to {seeds[-1]}, scored on up to {largest:,} {scored} rows; encoder "
        f"{encoders}, mixed_precision {' or '.join(document['precision'])}, {threads} thread(s), commit "
        f"{', '.join(str(commit)[:7] for commit in document['commit'])}."
    )


def write_to_guide(name: str, content: str) -> None:
    """Replace a generated table of the performance guide."""
    GUIDE.write_text(replace_block(GUIDE.read_text(encoding="utf-8"), name, content), encoding="utf-8")
