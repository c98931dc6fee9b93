"""Texts and labels are read verbatim, and every column type is read or rejected: finetune/data."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune.data.loading import read_splits
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip())
rows = st.lists(st.tuples(words, words), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verbatim")


def written(folder: Path, ending: str, rows: list[tuple[str, str]]) -> Path:
    file = folder / f"d.{ending}"
    objects = [{"sentence": text, "label": label} for text, label in rows]
    if ending == "csv":
        lines = io.StringIO()
        csv.writer(lines).writerows([("sentence", "label"), *rows])
        file.write_bytes(lines.getvalue().encode())
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(objects), file)
    else:
        file.write_text(json.dumps(objects) if ending == "json" else "\n".join(map(json.dumps, objects)))
    return file


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
@given(rows=rows)
@example(rows=[("a", "sep=,"), ("\ufeff", "\x00"), ('"', "\ry"), ("\u2028x", "\\"), ("NA", "-1"), ("1.0", "nan")])
@settings(max_examples=40)
def test_texts_and_labels_are_verbatim(folder: Path, ending: str, rows: list[tuple[str, str]]) -> None:
    read_rows = read_splits(DataSection(train_file=str(written(folder, ending, rows))))["train"].rows
    assert list(zip(read_rows["sentence"][:], read_rows["label"][:], strict=True)) == rows


PLAIN = [pa.float16(), pa.float32(), pa.uint8(), pa.int64(), pa.bool_(), pa.decimal128(5, 2), pa.large_string(),
         pa.dictionary(pa.int32(), pa.string())]  # fmt: skip
LISTS = [pa.list_(pa.string()), pa.large_list(pa.int8()), pa.list_(pa.float16(), 2), pa.list_(pa.bool_())]
OTHER = [pa.binary(), pa.date32(), pa.timestamp("ns"), pa.time64("us"), pa.duration("s"), pa.null(),
         pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.list_(pa.list_(pa.string())),
         pa.list_(pa.struct([("a", pa.int64())])), pa.list_(pa.binary())]  # fmt: skip


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("column", ["sentence", "label"])
@pytest.mark.parametrize("values", [*PLAIN, *LISTS, *OTHER], ids=str)
def test_every_column_type_is_read_or_rejected(
    tmp_path: Path, values: pa.DataType, column: str, problem_type: str
) -> None:
    sets = problem_type.startswith("multi")
    file = str(tmp_path / "d.parquet")
    columns = {"sentence": pa.array(["1", "2"]), "label": pa.array([["1"], ["2"]] if sets else ["1", "2"])}
    pq.write_table(pa.table(columns | {column: _two_values(values)}), file)
    if values in (LISTS if sets and column == "label" else PLAIN):
        assert read_splits(DataSection(train_file=file), problem_type)["train"].rows.num_rows == 2
    else:
        with pytest.raises(DataError, match=rf"d\.parquet( rows? 1.*)?: .*column '{column}'"):
            read_splits(DataSection(train_file=file), problem_type)


def _two_values(values: pa.DataType) -> pa.Array:
    """Return two non-null values of a type (zeros for numbers), or two nulls for the null type."""
    zeros = pa.py_buffer(bytes(64))
    if pa.types.is_fixed_size_list(values):
        return pa.FixedSizeListArray.from_arrays(pa.Array.from_buffers(values.value_type, 4, [None, zeros]), 2)
    if pa.types.is_map(values):
        return pa.array([[("a", 1)]] * 2, values)
    if pa.types.is_list(values) or pa.types.is_large_list(values):
        return pa.array([[item] for item in _two_values(values.value_type).to_pylist()], values)
    if pa.types.is_struct(values):
        return pa.array([{"a": 1}] * 2, values)
    if pa.types.is_null(values):
        return pa.nulls(2)
    is_number = pa.types.is_primitive(values) or pa.types.is_decimal(values)
    return pa.Array.from_buffers(values, 2, [None, zeros]) if is_number else pa.array(["1", "2"]).cast(values)
