"""How cells become texts and labels, in every format: finetune/data/cell_values.py."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.cell_values import cells_from_arrow, cells_from_values
from finetune.data.loading import columns_to_read, read_splits
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from tests.support.data_files import cells, parquet, written

# One table of rows, written in every format: all formats give the same texts and labels.
AS_WRITTEN = [
    ("NA", "007"), ("null", "7"), ("1984", "true"), ("true", "NA"), ("2020-01-01", "2020-01-02"), ("1.50", "0.0"),
    (" a ", "b, c"), ('say "hi"', "é"), ("a\\b", "nan"), ("a\tb" , "1e5"), ("line\nbreak", "None"), ("\u2028x", "-"),
]  # fmt: skip


def _csv(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in ',"\n') else text


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "columns.json", "parquet", "rows"])
def test_every_format_is_read_as_written(tmp_path: Path, ending: str) -> None:
    rows = [row for row in AS_WRITTEN if ending != "tsv" or not set("\t\n") & set("".join(row))]
    objects = [{"sentence": text, "label": label} for text, label in rows]
    if ending == "rows":
        read_rows = read_splits(DataSection(train_rows=list(objects)))["train"].rows
        assert list(zip(read_rows["sentence"][:], read_rows["label"][:], strict=True)) == rows
        return
    if ending == "parquet":
        file = parquet(tmp_path, [text for text, _ in rows], pa.array([label for _, label in rows]))
    elif ending in ("csv", "tsv"):
        separator, quote = ("\t", str) if ending == "tsv" else (",", _csv)
        lines = [separator.join(map(quote, row)) for row in [("sentence", "label"), *rows]]
        file = written(tmp_path, ending, "\n".join(lines))
    elif ending == "columns.json":
        columns = {
            "sentence": [text for text, _ in rows],
            "label": {str(n): label for n, (_, label) in enumerate(rows)},
        }
        columns["sentence"] = {str(n): text for n, text in enumerate(columns["sentence"])}
        file = written(tmp_path, ending, json.dumps(columns, indent=1))
    else:
        lines = [json.dumps(row) for row in objects]
        file = written(tmp_path, ending, "\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    assert cells(file) == rows
    assert len(rows) > 8


def test_invalid_unicode_is_reported_with_its_row(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xffx"]).buffers())
    column = columns_to_read(DataSection(train_file="unread"), lists=False)[0]
    with pytest.raises(DataError, match=r"here row 8: column 'sentence' .*not UTF-8"):
        cells_from_arrow(texts, column, "here", 7)
    with pytest.raises(DataError, match=r"here row 9: column 'sentence' .*unpaired surrogate"):
        cells_from_values(["a", "b", "\ud83d"], column, "here", 7)


def test_two_columns_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a", "b"])] * 3, names=["sentence", "label", "label"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet has two columns 'label' \(data\.label_column\); rename one"):
        cells(tmp_path / "d.parquet")
