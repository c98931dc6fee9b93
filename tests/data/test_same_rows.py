"""The same difficult rows in every format and compression give the same texts, labels and label sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.cell_values import Column
from finetune.data.input_rows import InputFile, read_windows
from finetune.data.loading import read_splits
from finetune.data.preview import read_preview
from finetune.recipe.data_files import file_format
from finetune.recipe.data_section import DataSection
from tests.support.data_files import MULTI, cells
from tests.support.written_rows import COMPRESSED, FORMATS, write_rows

# Each row: a text, and a label.
DIFFICULT = [
    ('say "hi"', '"'), ('"quoted"', "'"), ("line\nbreak", "a\nb"), ("CRLF\r\ninside", "c\rd"), (" leading", " x"),
    ("trailing ", "x "), ("NA", "null"), ("null", "NA"), ("None", "nan"), ("007", "007"), ("1e5", "1e5"),
    ("1.50", "1.50"), ("true", "False"), ("2020-01-01", "2020-01-02"), ("😀 👩\u200d👧", "👍🏽"), ("e\u0301 é", "café"),
    ("שלום עולם", "مرحبا"), ("中文，分词", "标签"), ("a\tb", "c\td"), ("x" * 70_000, "long"), ("-", "--"), (".", "..."),
    ("\u00a0x\u00a0", "\u00a0y"), ("\u200b", "\u200bz"), ("\ufeffmark", "\ufeff"), ("=1+1", "@sum"),
    ("<b>html</b> &amp;", "<i>"), ("back\\slash \\n", "\\"), ("a,b", "c,d"), ("a;b", "c;d"), ("a|b", "c|d"),
    ("u2028\u2028u2029\u2029", "x\u2028"), ("vertical\x0btab\x0cform", "x\x1f"), ("bell\x07", "\x7f"),
    ("next\u0085line", "\u0085x"), ("''", "''"), ("#comment", "#"), ("[1, 2]", "[x]"), ('{"a": 1}', "{}"),
    ("\ud7ff\ue000\U0010ffff", "𝕏"), ("sep=;", "sep=,"), ("12345678901234567890123", "0.1000"),
]  # fmt: skip
ROWS = [{"sentence": text, "label": label} for text, label in DIFFICULT]
# A tsv file has no quoting, so a text in it has no tab and no line break.
NOT_IN_TSV = set("\t\n\r")


def difficult(kind: str) -> list[dict[str, str]]:
    """Return the rows that a format can hold: all, but for tsv."""
    return [row for row in ROWS if kind != "tsv" or not NOT_IN_TSV & set("".join(row.values()))]


@pytest.mark.parametrize("packed", COMPRESSED)
@pytest.mark.parametrize("kind", FORMATS)
def test_training_reads_every_row_verbatim(tmp_path: Path, kind: str, packed: str) -> None:
    rows = difficult(kind)
    assert len(rows) == (len(DIFFICULT) - 3 if kind == "tsv" else len(DIFFICULT)) >= 38
    read = cells(write_rows(tmp_path, rows, kind, packed))
    assert read == [(row["sentence"], row["label"]) for row in rows]


@pytest.mark.parametrize("kind", FORMATS)
def test_predict_and_init_read_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = difficult(kind)
    for packed in ("", ".zst"):
        file = write_rows(tmp_path, rows, kind, packed)
        preview = read_preview(file)
        assert {name: column.values for name, column in preview.columns.items()} == {
            name: [row[name] for row in rows] for name in ("sentence", "label")
        }
        if file_format(file) != "txt":  # predict reads one text per line from it
            windows = list(read_windows(InputFile(file, file_format(file)), [Column("sentence", "--text-column")], 16))
            assert [text for window in windows for text in window.texts[0]] == [row["sentence"] for row in rows]


def test_rows_in_the_recipe_are_the_same() -> None:
    train = read_splits(DataSection(train_rows=[dict(row) for row in ROWS]))["train"]
    assert list(zip(train.column("sentence").to_pylist(), train.column("label").to_pylist(), strict=True)) == DIFFICULT


SETS = [["a", "b"], ["b"], ["c", "a"], ["d e"]]
AS_CELLS = {
    "semicolons": ["a;b", "b", "c; a", "d e"],
    "bars": ["a|b", "b|", "c|a", " d e "],
    "commas": ["a,b", "b", "c, a", "d e"],
    "JSON": ['["a", "b"]', '["b"]', '["c","a"]', '["d e"]'],
    "Python": ["['a', 'b']", "['b']", '["c", "a"]', "['d e',]"],
    "mixed": ["a;b", '["b"]', "c;a;", "d e"],
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("written", AS_CELLS)
def test_label_sets_in_cells_are_the_same_in_every_format(tmp_path: Path, written: str, kind: str) -> None:
    rows = [{"sentence": f"t{n}", "label": cell} for n, cell in enumerate(AS_CELLS[written])]
    assert [labels for _, labels in cells(write_rows(tmp_path, rows, kind), MULTI)] == SETS


@pytest.mark.parametrize("kind", FORMATS)
def test_one_column_per_label_is_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    names = ["a", "b", "c", "d e"]
    cells_of = [{name: str(int(name in labels)) for name in names} for labels in SETS]
    rows = [{"sentence": f"t{n}", **row} for n, row in enumerate(cells_of)]
    read = cells(write_rows(tmp_path, rows, kind), MULTI, label_columns=names)
    assert [sorted(labels) for _, labels in read] == [sorted(labels) for labels in SETS]
