from __future__ import annotations

import json

from tests.benchmarks.kept_results import RESULTS
from tests.benchmarks.pruning import GUIDE, tables


def test_the_guide_has_the_tables_of_the_kept_results() -> None:
    lines = json.loads((RESULTS / "pruning.json").read_text(encoding="utf-8"))
    text = "\n".join(tables(lines))
    assert text.count("\n| trec, ") + text.count("\n| sst2, ") + text.count("\n| banking77, ") == len(lines) > 2
    assert text in GUIDE.read_text(encoding="utf-8")
