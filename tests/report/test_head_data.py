from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.report.head_data import head_elements
from finetune.report.run_record import RunRecord, read_record
from finetune.runs.json_files import write_json
from tests.support.known_run import full_analysis, known_run


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    folder = known_run(tmp_path / "known")
    write_json(folder.heads, full_analysis(2))
    return read_record(folder)


def unpacked(html: str, name: str) -> bytes:
    """The bytes of an embedded element."""
    match = re.search(rf'id="{name}">([^<]*)<', html)
    assert match is not None
    return gzip.decompress(base64.b64decode(match.group(1)))


def content(record: RunRecord) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(unpacked(head_elements(record), "head-data"))
    return parsed


def test_a_page_without_a_head_analysis_has_no_data_of_heads(record: RunRecord) -> None:
    assert head_elements(replace(record, heads=None)) == ""


def test_the_data_has_the_ranking_and_every_map(record: RunRecord) -> None:
    data = content(record)
    assert data["ranking"][0] == [1, 10]  # the last head of the removal order
    assert [each["key"] for each in data["maps"]] == [
        "iterative_method_0",
        "iterative_method_1",
        "leave_one_out",
        "names",
    ]
    assert [each["key"] for each in data["changes"]] == ["output_value", "query_key", "effect"]
    assert data["maps"][0]["cells"][1][11] is None
    assert data["partners"] == {"0.1": "1.10", "1.10": "0.1"}
    assert data["maps"][0]["cells"][0][11][:3] == ["79", 79, 1]
