"""Writing rows with new columns: finetune/data/row_writers.py."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.input_rows import Window
from finetune.data.row_writers import DelimitedWriter, JsonLinesWriter, ParquetWriter
from finetune.errors import DataError


def arrow_window(columns: list[pa.Array], names: list[str], first: int = 1) -> Window:
    return Window(first, pa.RecordBatch.from_arrays(columns, names=names), [])


def added(count: int) -> pa.RecordBatch:
    """Return a column with a label per row."""
    return pa.RecordBatch.from_arrays([pa.array(["x"] * count)], names=["predicted"])


def test_a_tsv_file_has_no_quoting_and_cannot_hold_a_tab() -> None:
    stream = io.StringIO()
    writer = DelimitedWriter(stream, "tsv")
    writer.write(arrow_window([pa.array(['say "hi"', "a, b"])], ["text"]), added(2))
    assert stream.getvalue() == 'text\tpredicted\nsay "hi"\tx\na, b\tx\n'
    for cell in ("a\tb", "a\nb", "a\rb"):
        with pytest.raises(DataError, match="row 4 has a tab or a line break, which a tsv file cannot hold; write csv"):
            writer.write(arrow_window([pa.array(["fine", cell])], ["text"], first=3), added(2))
    with pytest.raises(DataError, match="the header has a tab"):
        DelimitedWriter(io.StringIO(), "tsv").write(arrow_window([pa.array(["a"])], ["a\tb"]), added(1))


def test_a_carriage_return_is_no_end_of_a_csv_row() -> None:
    stream = io.StringIO(newline="")
    rows = ["a\rb", "a\r\nb", "a\nb", 'say "hi"\r', "plain"]
    DelimitedWriter(stream, "csv").write(arrow_window([pa.array(rows)], ["text"]), added(5))
    stream.seek(0)
    assert list(csv.reader(stream)) == [["text", "predicted"], *([row, "x"] for row in rows)]
    assert stream.getvalue().endswith("\nplain,x\n")


def test_two_columns_of_one_name_fit_into_csv_only(tmp_path: Path) -> None:
    window = arrow_window([pa.array(["1"]), pa.array(["2"])], ["n", "n"])
    stream = io.StringIO()
    DelimitedWriter(stream, "csv").write(window, added(1))
    assert stream.getvalue() == "n,n,predicted\n1,2,x\n"
    for writer in (JsonLinesWriter(io.StringIO()), ParquetWriter(tmp_path / "out.parquet")):
        with pytest.raises(DataError, match=r"the input has two columns 'n', which \w+ cannot hold; rename one"):
            writer.write(window, added(1))


def test_float32_numbers_are_written_in_their_shortest_form() -> None:
    numbers = pa.array([0.1, 1e-9, None], pa.float32())
    for writer, expected in ((DelimitedWriter, "0.1,x\n1e-09,x\n,x\n"), (JsonLinesWriter, '{"n": 0.1, "predicted')):
        stream = io.StringIO()
        arguments = ("csv",) if writer is DelimitedWriter else ()
        writer(stream, *arguments).write(arrow_window([numbers], ["n"]), added(3))
        assert expected in stream.getvalue()


@pytest.mark.parametrize("kind", [pa.list_(pa.field("element", pa.float32())), pa.list_(pa.float32(), 2)])
def test_lists_of_float32_numbers_are_written_in_their_shortest_form(kind: pa.DataType) -> None:
    stream = io.StringIO()
    numbers = pa.array([[0.1, None], None, [1e-9, 2.0]], kind)
    JsonLinesWriter(stream).write(arrow_window([numbers], ["n"]), added(3))
    assert [json.loads(line)["n"] for line in stream.getvalue().splitlines()] == [[0.1, None], None, [1e-9, 2.0]]


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.duration("s")])
def test_a_value_that_python_cannot_hold_fits_into_parquet_only(kind: pa.DataType, tmp_path: Path) -> None:
    window = arrow_window([pa.array([10**17], kind)], ["n"])
    for writer in (DelimitedWriter(io.StringIO(), "csv"), JsonLinesWriter(io.StringIO())):
        with pytest.raises(DataError, match=r"column 'n' \(.*\) has a value that only parquet can hold .*; write parq"):
            writer.write(window, added(1))
    parquet = ParquetWriter(tmp_path / "out.parquet")
    parquet.write(window, added(1))
    parquet.close()
    assert pq.read_table(tmp_path / "out.parquet")["n"].combine_chunks().equals(window.rows.column(0))


def test_objects_with_other_keys_fit_into_jsonl_only(tmp_path: Path) -> None:
    first, second = Window(1, [{"a": 1}], []), Window(2, [{"a": 2}, {"a": 3, "b": True}], [])
    stream = io.StringIO()
    lines = JsonLinesWriter(stream)
    lines.write(first, added(1))
    lines.write(second, added(2))
    assert stream.getvalue().splitlines()[2] == '{"a": 3, "b": true, "predicted": "x"}'
    for writer in (DelimitedWriter(io.StringIO(), "csv"), ParquetWriter(tmp_path / "out.parquet")):
        writer.write(first, added(1))
        with pytest.raises(
            DataError, match=r"row 3 has the key 'b', which the first rows do not have; .*: write jsonl"
        ):
            writer.write(second, added(2))


def test_parquet_columns_have_the_types_of_the_first_objects(tmp_path: Path) -> None:
    writer = ParquetWriter(tmp_path / "out.parquet")
    writer.write(Window(1, [{"n": 1, "deep": {"a": [1.5]}, "empty": None}, {"n": 2}], []), added(2))
    writer.write(Window(3, [{"n": 3, "empty": "text"}], []), added(1))
    with pytest.raises(
        DataError, match=r"rows 4 to 4: column 'n' has a value that does not fit its type .*; write jsonl"
    ):
        writer.write(Window(4, [{"n": "four"}], []), added(1))
    writer.close()
    result = pq.read_table(tmp_path / "out.parquet")
    assert result["n"].to_pylist() == [1, 2, 3]
    assert result["empty"].to_pylist() == [None, None, "text"]
    assert result["deep"].to_pylist() == [{"a": [1.5]}, None, None]
    with pytest.raises(DataError, match="column 'n' has a value that does not fit its type in parquet"):
        ParquetWriter(tmp_path / "other.parquet").write(Window(1, [{"n": 1}, {"n": "a"}], []), added(2))


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (1, 2.5),
        ([1], [2.5]),
        (1.5, True),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([{"a": 1}], [{"b": 2}]),
        ({"a": 1}, {"a": 0.5}),
    ],
)
def test_a_later_object_is_never_changed_to_fit_into_parquet(first: object, later: object, tmp_path: Path) -> None:
    writer = ParquetWriter(tmp_path / "out.parquet")
    writer.write(Window(1, [{"n": first}], []), added(1))
    with pytest.raises(
        DataError, match=r"rows 2 to 2: column 'n' has a value that does not fit its type .*write jsonl"
    ):
        writer.write(Window(2, [{"n": later}], []), added(1))
    writer.discard()


@pytest.mark.parametrize(("first", "later"), [(1.5, 2), ({"a": 1, "b": [1.5]}, {"b": [3]}), ([1], []), ([1], None)])
def test_a_later_object_that_fits_is_written(first: object, later: object, tmp_path: Path) -> None:
    writer = ParquetWriter(tmp_path / "out.parquet")
    writer.write(Window(1, [{"n": first}], []), added(1))
    writer.write(Window(2, [{"n": later}], []), added(1))
    writer.close()
    expected = {"a": None, **later} if isinstance(later, dict) else later
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == [first, expected]


def test_many_rows_are_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.row_writers._ROW_GROUP", 10)
    writer = ParquetWriter(tmp_path / "out.parquet")
    for start in range(0, 28, 4):
        writer.write(arrow_window([pa.array(range(start, start + 4))], ["n"], first=start + 1), added(4))
    writer.close()
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_row_groups > 2
    assert file.read()["n"].to_pylist() == list(range(28))


def test_bytes_fit_into_parquet_only() -> None:
    window = arrow_window([pa.array([b"x"])], ["n"])
    for writer in (DelimitedWriter(io.StringIO(), "csv"), JsonLinesWriter(io.StringIO())):
        with pytest.raises(DataError, match="a column has values of type bytes, which only parquet can hold"):
            writer.write(window, added(1))
