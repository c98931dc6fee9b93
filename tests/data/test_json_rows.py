"""Reading json and jsonl files: finetune/data/json_rows.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import DataError
from tests.support.data_files import cells, written

NUMBERS = '{"sentence": 1984, "label": 3}\n{"sentence": 1.50, "label": "x"}\n{"sentence": true, "label": false}\n'


def test_numbers_in_json_are_read_as_written(tmp_path: Path) -> None:
    digits = "1" + "2" * 30
    file = written(tmp_path, "jsonl", NUMBERS + f'\n{{"sentence": "a b", "label": {digits}, "other": [[{{}}]]}}')
    assert cells(file) == [("1984", "3"), ("1.50", "x"), ("true", "false"), ("a b", digits)]


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ({"sentence": "a", "label": float("nan")}, "column 'label' is empty"),
        ({"sentence": "a", "label": float("inf")}, "contains an infinite number"),
        ({"sentence": "a"}, "column 'label' is empty"),
        ({"sentence": None, "label": "x"}, "column 'sentence' is empty"),
        ({"sentence": {"a": 1}, "label": "x"}, "contains an object"),
        ({"sentence": "a", "label": ["x"]}, "contains a list; give one label per row"),
    ],
)
def test_json_cells_are_checked(tmp_path: Path, content: dict[str, Any], row: str) -> None:
    lines = [json.dumps(line) for line in ({"sentence": "b", "label": 0}, content, {"sentence": "c", "label": 1})]
    with pytest.raises(DataError, match=rf"d\.jsonl row 2: .*{row}"):
        cells(written(tmp_path, "jsonl", "\n".join(lines)))


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("json", "null", r"d\.json contains null instead of rows"),
        ("json", "3", r"d\.json contains a text or a number instead of rows"),
        ("json", '"a, b"', r"d\.json contains a text or a number instead of rows"),
        ("json", "[]", r"d\.json has no rows"),
        ("json", "{}", r"d\.json has no rows"),
        ("json", "[1, 2]", r"d\.json row 1 contains a text or a number"),
        ("json", "[null]", r"d\.json row 1 contains null"),
        ("json", '{"sentence": ["a", "b"], "label": ["x"]}', r"columns have different rows"),
        ("json", '{"data": [{"sentence": "a"}]}', r"has no column 'sentence'.*it has data"),
        ("json", '{\n "sentence": ["a"],\n "label": ["x"\n}', r"d\.json line 4 is not valid JSON"),
        ("jsonl", "null\n", r"line 1 contains null instead of an object; write one object per line"),
        ("jsonl", '{"sentence": "a", "label": "x"}\n\n[1]\n', r"line 3 contains a list"),
        (
            "jsonl",
            '{"sentence": "a", "label": "x"}\n{"sentence": "b" "label": "y"}\n',
            r"line 2 is not valid JSON: Expecting",
        ),
        ("jsonl", '{"sentence": "a", "label": 1, "label": 2}\n', r"line 1 .*'label' occurs twice"),
        (
            "jsonl",
            '{"sentence": "a", "z": ' + "[" * 100_000 + "\n",
            r"line 1 has lists or objects that are nested too deeply",
        ),
        ("json", "[" * 100_000, r"d\.json has lists or objects that are nested too deeply"),
        ("jsonl", '{"a": 1}\n', r"has no column 'sentence'"),
    ],
)
def test_json_without_rows_is_reported(tmp_path: Path, ending: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cells(written(tmp_path, ending, content))
