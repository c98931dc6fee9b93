"""The first rows with all columns: finetune/data/preview.py."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.cell_values import BATCH_ROWS
from finetune.data.preview import PreviewColumn, read_preview
from finetune.errors import DataError
from tests.support.data_files import written


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("csv", "a,b,\nx,1,\ny,2,\n"),
        ("tsv", "a\tb\nx\t1\ny\t2\n"),
        ("json", '[{"a": "x", "b": 1}, {"a": "y", "b": 2}]'),
        ("jsonl", '{"a": "x", "b": 1}\n{"a": "y", "b": 2}\n'),
    ],
)
def test_every_format_gives_the_same_columns(ending: str, content: str, tmp_path: Path) -> None:
    preview = read_preview(written(tmp_path, ending, content))
    assert (list(preview.columns), preview.num_rows, preview.complete) == (["a", "b"], 2, True)
    assert preview.columns["a"].texts == ["x", "y"]
    assert dict(preview.columns["b"].counts) == {"1": 1, "2": 1}
    assert preview.columns["b"].is_integer


def test_parquet_keeps_lists_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    pq.write_table(pa.table({"a": ["x y", None], "b": [[1, 2], []], "c": [1.0, None], "d": [True, False]}), file)
    columns = read_preview(file).columns
    assert columns["b"].has_lists
    assert columns["b"].texts == ["1", "2"]
    assert (columns["a"].num_empty, columns["b"].num_empty, columns["c"].num_empty) == (1, 0, 1)
    assert columns["c"].is_integer
    assert dict(columns["d"].counts) == {"true": 1, "false": 1}


def test_a_long_file_is_read_at_its_beginning_only(tmp_path: Path) -> None:
    rows = "".join(f"{number}\n" for number in range(BATCH_ROWS + 5))
    for ending, header in (("csv", "n\n"), ("tsv", "n\n")):
        preview = read_preview(written(tmp_path, ending, header + rows))
        assert (preview.num_rows, preview.complete) == (BATCH_ROWS, False)
    exact = read_preview(written(tmp_path, "csv", "n\n" + "1\n" * BATCH_ROWS))
    assert (exact.num_rows, exact.complete) == (BATCH_ROWS, True)


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("csv", "", r"is empty \(0 bytes\)"),
        ("csv", "a,b\n", r"has no rows; add at least one"),
        ("csv", "a,a\n1,2\n", r"has two columns 'a'; rename one"),
        ("csv", '[{"a": 1}]', r"its first bytes are those of JSON"),
        ("parquet", "PAR1", r"cannot be read as parquet"),
        ("jsonl", '{"a": 1\n', r"is not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(ending: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_preview(written(tmp_path, ending, content))


@pytest.mark.parametrize(
    ("values", "is_number", "is_integer", "is_date_or_link"),
    [
        (["1", "2.0", "-3"], True, True, False),
        (["1", "2.5"], True, False, False),
        (["1", "x"], False, False, False),
        (["2020-01-31", "2021-12-01 10:00"], False, False, True),
        (["31.12.2020"], False, False, True),
        (["2020-01-31T10:00:00.5+01:00", "1/31/2020 9:05 PM", "2020-01-31 10:00 CEST"], False, False, True),
        (["2020-01-31 10:00:00 disk full", "2020-01-31 ok"], False, False, False),
        (["https://a.b/c is down", "https://a.b/c"], False, False, False),
        (["https://a.b/c"], False, False, True),
        ([None, ""], False, False, False),
        ([{"a": 1}], False, False, False),
    ],
)
def test_kinds_of_values(values: list[object], is_number: bool, is_integer: bool, is_date_or_link: bool) -> None:
    column = PreviewColumn("x", values)
    assert (column.is_number, column.is_integer, column.is_date_or_link) == (is_number, is_integer, is_date_or_link)


def test_only_the_number_nan_is_an_empty_cell() -> None:
    column = PreviewColumn("label", ["nan", "NA", float("nan"), None, " "])
    assert (dict(column.counts), column.num_empty) == ({"nan": 1, "NA": 1}, 3)
