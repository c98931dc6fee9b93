"""What is written is what is read, whatever the file: finetune/data/file_formats.py and the readers it calls."""

from __future__ import annotations

import decimal
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.cells import from_arrow, from_values, wanted_columns
from finetune.data.loading import read_splits
from finetune.data.row_cache import cache_folder
from finetune.data.splits import read_labeled
from finetune.errors import DataError
from finetune.recipe import DataSection

MULTI = "multi_label_classification"


def cells(file: Path, problem_type: str = "single_label_classification", **keys: Any) -> list[tuple[Any, Any]]:
    """The texts and labels that are read from a file."""
    rows = read_splits(DataSection(train_file=str(file), **keys), problem_type)["train"].rows
    return list(zip(rows["sentence"][:], rows["label"][:], strict=True))


def written(folder: Path, ending: str, content: str | bytes) -> Path:
    file = folder / f"d.{ending}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def parquet(folder: Path, sentence: Any = None, label: Any = None, metadata: dict[str, str] | None = None) -> Path:
    label = pa.array(["x", "y", "x"]) if label is None else label
    sentence = [f"text {n}" for n in range(len(label))] if sentence is None else sentence
    table = pa.table({"sentence": sentence, "label": label})
    pq.write_table(table.replace_schema_metadata(metadata), folder / "d.parquet")
    return folder / "d.parquet"


# One table of rows, written in every way: all formats give the same texts and labels.
AS_WRITTEN = [
    ("NA", "007"), ("null", "7"), ("1984", "true"), ("true", "NA"), ("2020-01-01", "2020-01-02"), ("1.50", "0.0"),
    (" a ", "b, c"), ('say "hi"', "é"), ("a\\b", "nan"), ("a\tb" , "1e5"), ("line\nbreak", "None"), ("\u2028x", "-"),
]  # fmt: skip


def _csv(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n') else text


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "columns.json", "parquet", "rows"])
def test_what_is_written_is_what_is_read(tmp_path: Path, ending: str) -> None:
    rows = [row for row in AS_WRITTEN if ending != "tsv" or not set("\t\n") & set("".join(row))]
    objects = [{"sentence": text, "label": label} for text, label in rows]
    if ending == "rows":
        found = read_splits(DataSection(train_rows=list(objects)))["train"].rows
        assert list(zip(found["sentence"][:], found["label"][:], strict=True)) == rows
        return
    if ending == "parquet":
        file = parquet(tmp_path, [text for text, _ in rows], pa.array([label for _, label in rows]))
    elif ending in ("csv", "tsv"):
        sign, quote = ("\t", str) if ending == "tsv" else (",", _csv)
        lines = [sign.join(map(quote, row)) for row in [("sentence", "label"), *rows]]
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


NUMBERS = '{"sentence": 1984, "label": 3}\n{"sentence": 1.50, "label": "x"}\n{"sentence": true, "label": false}\n'


def test_numbers_in_json_are_read_as_they_are_written_and_change_no_other_cell(tmp_path: Path) -> None:
    digits = "1" + "2" * 30
    file = written(tmp_path, "jsonl", NUMBERS + f'\n{{"sentence": "a b", "label": {digits}, "other": [[{{}}]]}}')
    assert cells(file) == [("1984", "3"), ("1.50", "x"), ("true", "false"), ("a b", digits)]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([1, 2, 3], pa.uint8()), ["1", "2", "3"]),
        (pa.array(np.array([1.0, 0.5, 0.0], np.float16)), ["1.0", "0.5", "0.0"]),
        (pa.array([1.0, 0.1, 1e30], pa.float32()), ["1.0", "0.1", "1e+30"]),
        (pa.array([1e300, -0.0, 2.0]), ["1e+300", "-0.0", "2.0"]),
        (pa.array([True, False, True]), ["true", "false", "true"]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal(10**22), decimal.Decimal(0)], pa.decimal128(25, 2)),
         ["1.50", "1" + "0" * 22 + ".00", "0.00"]),
        (pa.array(["a", "b", "a"], pa.large_string()), ["a", "b", "a"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    ],
)  # fmt: skip
def test_typed_columns_are_written_as_json_writes_them(tmp_path: Path, values: pa.Array, texts: list[str]) -> None:
    assert [label for _, label in cells(parquet(tmp_path, label=values))] == texts
    assert [text for text, _ in cells(parquet(tmp_path, sentence=values))] == texts


LISTS = [["x", "y"], ["y", "x"], ["x", "z"]]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)])
def test_lists_of_any_kind_are_sets_of_labels(tmp_path: Path, kind: pa.DataType) -> None:
    file = parquet(tmp_path, label=pa.array(LISTS, kind))
    assert [label for _, label in cells(file, MULTI)] == LISTS
    with pytest.raises(DataError, match=r"d\.parquet row 1: column 'label' .*contains lists .*one label per row"):
        cells(file)


def test_lists_keep_their_rows_where_some_are_empty_or_dropped(tmp_path: Path) -> None:
    file = parquet(tmp_path, label=pa.array([["1"], None, [], ["2", "3"]]))
    assert cells(file, MULTI, drop_unlabeled=True) == [("text 0", ["1"]), ("text 2", []), ("text 3", ["2", "3"])]
    with pytest.raises(DataError, match=r"row 2: column 'label' is empty; .*drop_unlabeled"):
        cells(file, MULTI)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (pa.array([None, b"\xff", b"y"]), r"row 2: .*contains binary; it must contain texts"),
        (pa.array([0.0, float("inf"), 1.0]), r"row 2: .*contains an infinite number"),
        (pa.array([1, 2, 3], pa.date32()), r"row 1: .*contains date32"),
        (pa.array([1, 2, 3], pa.timestamp("s")), r"row 1: .*contains timestamp"),
        (pa.array([1, 2, 3], pa.duration("s")), r"row 1: .*contains duration"),
        (pa.array([{"a": 1}, {"a": 2}, None]), r"row 1: .*contains struct<a: int64>"),
        (pa.array([["x"], ["y"], ["z"]]), r"row 1: .*contains lists"),
        (pa.array([1.0, float("nan"), 2.0]), r"row 2: column '\w+' is empty"),
        (pa.array(np.array([1.0, np.nan, 2.0], np.float16)), r"row 2: column '\w+' is empty"),
        (pa.nulls(3), r"rows 1, 2, 3: column '\w+' is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["sentence", "label"])
def test_what_has_no_text_is_refused_with_its_row(tmp_path: Path, column: str, values: pa.Array, problem: str) -> None:
    with pytest.raises(DataError, match=rf"d\.parquet {problem}"):
        cells(parquet(tmp_path, **{column: values}))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (pa.array([["x", None], ["y"]]), r"row 1: column 'label' lists an empty label"),
        (pa.array([["x", " "], ["y"]]), r"row 1: column 'label' lists an empty label"),
        (pa.array([[["x"]], [["y"]]]), r"row 1: .*contains list<"),
        (pa.array([["x"], [b"y"]]).cast(pa.list_(pa.binary())), r"row 1: .*contains binary"),
        (pa.array([[1.0], [float("inf")]]), r"row 2: .*infinite"),
        (pa.array(["a,b", "b"]), r"row 1: .*needs a list of labels per row; use a json, jsonl or parq"),
    ],
)
def test_sets_of_labels_are_checked_item_by_item(tmp_path: Path, values: pa.Array, problem: str) -> None:
    with pytest.raises(DataError, match=rf"d\.parquet {problem}"):
        cells(parquet(tmp_path, label=values), MULTI)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a", "b"])] * 3, names=["sentence", "label", "label"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet has two columns 'label' \(data\.label_column\); rename one"):
        cells(tmp_path / "d.parquet")


def test_text_that_is_no_unicode_is_refused_with_its_row(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xffx"]).buffers())
    column = wanted_columns(DataSection(train_file="unread"), lists=False)[0]
    with pytest.raises(DataError, match=r"here row 8: column 'sentence' .*not UTF-8"):
        from_arrow(texts, column, "here", 7)
    with pytest.raises(DataError, match=r"here row 9: column 'sentence' .*unpaired surrogate"):
        from_values(["a", "b", "\ud83d"], column, "here", 7)


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
def test_json_cells_are_checked_by_the_same_rule(tmp_path: Path, content: dict[str, Any], row: str) -> None:
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
def test_json_that_holds_no_rows_is_one_message(tmp_path: Path, ending: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cells(written(tmp_path, ending, content))


@pytest.mark.parametrize(
    "content",
    [
        ",sentence,label\n0,a,x\n1,b,y\n",  # pandas' index
        "sentence,label,\na,x,\nb,y,\n",  # a comma at the end of each line
        "sentence,label\na,x,\nb,y,\n",  # the same, but not in the header
        "sentence,label,,\na,x\nb,y\n",
        "sentence,,label\na,1,x\nb,2,y\n",
        "sep=,\nsentence,label\na,x\nb,y\n",
        '"sep=;"\r\nsentence;label\r\na;x\r\nb;y\r\n',
        "\ufeffsep=\t\nsentence\tlabel\na\tx\nb\ty\n",
        "sep=,,\nsentence,label,\na,x,\nb,y,\n",
        "\n\nsentence,label\n\na,x\n\nb,y",
        "sentence,label\ra,x\rb,y\r",
    ],
)
def test_columns_without_a_name_and_lines_of_spreadsheets_are_passed_over(tmp_path: Path, content: str) -> None:
    assert cells(written(tmp_path, "csv", content)) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # A stray mark at the start of a text; one that is escaped by a backslash; one that is never closed.
        ('a,x\n"b,y\nc,x\nit is 5" long,y\n', r"row 2 \(lines 3 to 5\): text follows a closing .* in line 5"),
        ('a,x\n"b \\"c\\" d",y\ne,x\n', r"row 2 \(line 3\): text follows a closing quotation mark.*do not escape it"),
        ('a,x\n"b \\"",y\nc,x\n', r"row 2 \(lines 3 to 4\): a quotation mark opens a text that is never closed"),
        ('a,x\nb,"y\n', r"row 2 \(line 3\): a quotation mark opens a text that is never closed"),
        # One that happens to be closed further below is well-formed; what it swallowed looks like rows.
        ('a,x\n"b,y\nheight 5",x\nc,y\n', r"row 2 \(lines 3 to 4\): .*its line 'b,y' looks like a row"),
        ('a,x\n"b \\"",y\nc 5",x\nd,y\n', r"row 2 \(lines 3 to 4\): .*looks like a row"),
        ('a,x\n"b, \\"",y\nc,x\nd 5",x\ne,y\n', r"row 2 \(lines 3 to 5\): .*looks like a row"),
        ("a,x,\nb,y\n", r"row 2 \(line 3\) has 2 cells, but row 1 has 3; put"),
        ("a,x\nb,y,\n", r"row 2 \(line 3\) has 3 cells, but row 1 has 2; put"),
        ("a,x,z\nb,y,\n", r"row 1 \(line 2\) has 3 cells, but the header names 2 columns; put quotation marks"),
    ],
)
def test_malformed_csv_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"d\.csv {message}"):
        cells(written(tmp_path, "csv", f"sentence,label\n{content}"))


@pytest.mark.parametrize(
    ("header", "rows", "line"),
    [
        ("id,sentence,label", '1,a,x\n2,"b,y\n3,height 5",x\n4,c,y\n', "b,y"),
        ("label,sentence", 'x,a\ny,"b\nx,c\ny,height 5"\nx,d\n', "x,c"),
        ("label,sentence", 'x,a\ny,"b\nx,height 5"\n', "x,height 5"),
    ],
)
def test_rows_between_stray_marks_are_seen_in_any_column(tmp_path: Path, header: str, rows: str, line: str) -> None:
    with pytest.raises(DataError, match=rf"its line '{line}' looks like a row"):
        cells(written(tmp_path, "csv", f"{header}\n{rows}"))


@pytest.mark.parametrize(
    ("header", "row", "text"),
    [
        ("sentence,label", '"Roses, red\nviolets,x",x', "Roses, red\nviolets,x"),
        ("sentence,label", '"a,b\nc,x\nd,y",x', "a,b\nc,x\nd,y"),
        ("sentence,label", '"one,\ntwo,x\n\nthree, four",x', "one,\ntwo,x\n\nthree, four"),
        ("label,sentence", 'x,"Well,\nx,thanks"', "Well,\nx,thanks"),
        ("sentence,label", '"this,x\n",x', "this,x\n"),
    ],
)
def test_commas_and_line_breaks_alone_do_not_make_rows(tmp_path: Path, header: str, row: str, text: str) -> None:
    other = "a,y\nb,x" if header.startswith("sentence") else "y,a\nx,b"
    assert cells(written(tmp_path, "csv", f"{header}\n{row}\n{other}\n")) == [(text, "x"), ("a", "y"), ("b", "x")]


def test_columns_that_are_not_read_may_share_a_name(tmp_path: Path) -> None:
    assert cells(written(tmp_path, "csv", "n,n,sentence,label\n1,2,a,x\n1,2,b,y\n")) == [("a", "x"), ("b", "y")]


def test_a_tab_in_a_tsv_text_has_its_own_repair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 3\) has 3 cells, but .* 2 columns; a text in a tsv file cannot"):
        cells(written(tmp_path, "tsv", 'sentence\tlabel\na\tx\n"b\tc"\ty\n'))


def test_text_in_a_column_without_a_name_at_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(line 2\) has 'x' in a column without a name; add its name"):
        cells(written(tmp_path, "csv", "sentence,label,\nWell a, the tail,x\nb,y,\n"))


def test_a_text_over_several_lines_is_one_text(tmp_path: Path) -> None:
    content = 'sentence,label\n"Dear Bob,\nyes, I am.\r\nAnn",x\n"say ""hi""",y\n5" tall,x\n'
    texts = ["Dear Bob,\nyes, I am.\r\nAnn", 'say "hi"', '5" tall']
    assert [text for text, _ in cells(written(tmp_path, "csv", content))] == texts


SIGNATURES: list[tuple[str, bytes, str]] = [
    ("csv", b"PAR1....PAR1", "a parquet file; rename it to .parquet"),
    ("csv", b"PK\x03\x04....[Content_Types].xml", "an Excel workbook; export the sheet as csv"),
    ("jsonl", b"PK\x03\x04....data.jsonl", "a zip archive; unpack it"),
    ("csv", b"\x1f\x8b\x08rest", "a gzip archive; unpack it"),
    ("parquet", b"\x1f\x8b\x08rest", "a gzip archive; unpack it"),
    ("csv", "sentence,label\na,x\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    ("csv", "sentence,label\na,x\n".encode("utf-16-le"), "UTF-16 text or a binary file"),
    ("tsv", "sentence\tlabel\na\tx\n".encode("utf-32"), "UTF-32 text; save it as UTF-8"),
    ("csv", b"<!DOCTYPE html><html>", "a web page or XML"),
    ("json", b"\n <html><body>", "a web page or XML"),
    ("csv", b'{"sentence": "a", "label": "x"}\n', "JSON; rename it to .jsonl"),
    ("jsonl", b"sentence,label\na,x\n", "csv; rename it to .csv"),
    ("json", b"sentence\tlabel\na\tx\n", "tab-separated text; rename it to .tsv"),
    ("parquet", b"sentence,label\na,x\n", "csv; rename it to .csv"),
    ("parquet", b'[{"sentence": "a"}]', "JSON; rename it to .jsonl"),
    ("csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook"),
    ("parquet", b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer .*run `git lfs pull`"),
]


@pytest.mark.parametrize(("ending", "content", "what"), SIGNATURES)
def test_a_file_that_is_another_than_its_name_says_is_named(
    tmp_path: Path, ending: str, content: bytes, what: str
) -> None:
    with pytest.raises(
        DataError, match=rf"the name of .*d\.{ending} ends in \.{ending}, but its first bytes are those of {what}"
    ):
        cells(written(tmp_path, ending, content))


def test_a_capital_ending_is_read(tmp_path: Path) -> None:
    assert cells(written(tmp_path, "CSV", "sentence,label\na,x\n")) == [("a", "x")]


def test_rows_come_from_the_file_as_it_is_now(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence,label\na,x\nb,y\n")
    os.utime(file, (0, 0))
    first = read_splits(DataSection(train_file=str(file)))["train"].rows
    written(tmp_path, "csv", "sentence,label\na,y\nb,x\n")  # as long as before
    os.utime(file, (0, 0))
    second = read_splits(DataSection(train_file=str(file)))["train"].rows
    assert (first["label"][:], second["label"][:]) == (["x", "y"], ["y", "x"])
    copy = written(tmp_path / "..", "CSV", file.read_bytes())
    third = read_splits(DataSection(train_file=str(copy)))["train"].rows
    assert third._fingerprint == second._fingerprint != first._fingerprint  # token ids go by content alone
    assert not list(cache_folder().glob("*.part"))


def test_rows_that_are_open_elsewhere_are_used_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(part: Path, whole: Path) -> None:
        raise PermissionError(13, "Access is denied")

    file = written(tmp_path, "csv", "sentence,label\nopen,x\n")
    rows = cells(file)
    monkeypatch.setattr(Path, "replace", refuse)
    assert cells(file) == rows
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*: Access is denied; free disk space"):
        cells(written(tmp_path, "csv", "sentence,label\nnever seen before,x\n"))
    assert not list(cache_folder().glob("*.part"))


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file where a folder is needed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "occupied")
    file = written(tmp_path, "csv", "sentence,label\na,x\nb,y\n")
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*occupied.*HF_DATASETS_CACHE"):
        cells(file)
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*occupied.*HF_DATASETS_CACHE"):
        read_splits(DataSection(dataset_name=str(file.parent), validation_split=None))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"gone\.csv cannot be read: No such file"):
        cells(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"d\.parquet cannot be read as parquet"):
        cells(written(tmp_path, "parquet", parquet(tmp_path).read_bytes()[:-40]))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Write files NAME_ENDING into a folder, and return its path."""

    def write(**files: str) -> str:
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        return str(tmp_path)

    return write


CSV = "sentence,label\nNA,007\nnull,1\n2020-01-01,007\n"


def named(name: str, **keys: Any) -> dict[str, list[tuple[str, str]]]:
    splits = read_splits(DataSection(dataset_name=name, **keys))
    return {s: list(zip(raw.rows["sentence"][:], raw.rows["label"][:], strict=True)) for s, raw in splits.items()}


def test_a_folder_of_files_is_read_like_the_files(folder: Callable[..., str], tmp_path: Path) -> None:
    found = named(folder(train_csv=CSV, validation_csv=CSV, test_csv="text\nunread\n"))
    assert found["train"] == found["validation"] == [("NA", "007"), ("null", "1"), ("2020-01-01", "007")]
    part = read_splits(DataSection(dataset_name=str(tmp_path), train_split="train[1:]"))["train"]
    assert (part.rows["sentence"][:], part.row_numbers().tolist()) == (["null", "2020-01-01"], [2, 3])
    with pytest.raises(DataError, match=r"cannot load .*split dev.*give the names of its splits"):
        named(str(tmp_path), validation_split="dev")
    with pytest.raises(DataError, match=r"test\.csv has no column 'sentence'"):
        named(str(tmp_path), validation_split="test[:1]")
    (tmp_path / "validation.csv").write_text("sentence,label\na\n")
    with pytest.raises(DataError, match=r"validation\.csv row 1 \(line 2\) has 1 cell"):
        named(str(tmp_path))


def test_a_folder_s_own_validation_rows_are_not_passed_over(folder: Callable[..., str], tmp_path: Path) -> None:
    train = folder(train_csv=CSV)
    assert list(named(train, validation_size=0.5)) == ["train"]  # the rows held out are drawn later
    (tmp_path / "validation.csv").write_text(CSV)
    with pytest.raises(DataError, match=r"validation_size holds out .* has a split 'validation'; remove"):
        named(train, validation_size=0.5)
    assert list(named(train, validation_size=0.5, validation_split=None)) == ["train"]


def test_classes_that_a_data_set_declares_are_kept(tmp_path: Path) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    rows = datasets.Dataset.from_dict({"sentence": ["one", "two", "three"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    one = read_splits(DataSection(train_file=str(tmp_path / "train.parquet")))["train"]
    two = read_splits(DataSection(dataset_name=str(tmp_path), validation_split=None))["train"]
    for raw in (one, two):
        assert (raw.rows["label"][:], raw.class_names) == (["a", "b", "-1"], ["b", "a"])
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "saved"))
    three = read_splits(DataSection(dataset_name=str(tmp_path / "saved"), validation_split=None))["train"]
    assert (three.rows["label"][:], three.class_names) == (["a", "b", "-1"], ["b", "a"])


README = """---
dataset_info:
  features:
  - {name: sentence, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': neg, '1': pos}}}
---
"""


def test_class_names_in_a_folder_s_readme_are_kept(folder: Callable[..., str]) -> None:
    data = DataSection(
        dataset_name=folder(README_md=README, train_csv="sentence,label\na,1\nb,0\n"), validation_split=None
    )
    splits = read_labeled(data, "single_label_classification", None, seed=0)
    assert (splits.label_names, splits.labels["train"].tolist()) == (["neg", "pos"], [1, 0])


def test_rows_without_a_label_are_left_out_if_asked(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence,label\na,x\nb,\nc,-1\n,\nd,y\n")
    raw = read_splits(DataSection(train_file=str(file), drop_unlabeled=True))["train"]
    assert (raw.rows["sentence"][:], raw.row_numbers().tolist(), raw.dropped) == (["a", "d"], [1, 5], 3)
    numbers = read_splits(DataSection(train_file=str(file), drop_unlabeled=True), "regression")["train"]
    assert (numbers.rows["label"][:], numbers.dropped) == (["x", "-1", "y"], 2)  # -1 is a number like any other
    with pytest.raises(DataError, match=r"rows 2, 4: column 'label' is empty|row 4: column 'sentence' is empty"):
        cells(file)
    with pytest.raises(
        DataError, match=r"d\.csv has no row with a label in column 'label'; remove this split from the recipe"
    ):
        cells(written(tmp_path, "csv", "sentence,label\na,-1\nb,\n"), drop_unlabeled=True)
