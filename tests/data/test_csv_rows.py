"""Reading csv and tsv files: finetune/data/csv_rows.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from tests.support.data_files import cells, written


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
def test_unnamed_columns_and_separator_lines_are_ignored(tmp_path: Path, content: str) -> None:
    assert cells(written(tmp_path, "csv", content)) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # A stray quotation mark at the start of a text; one escaped by a backslash; one that is never closed.
        ('a,x\n"b,y\nc,x\nit is 5" long,y\n', r"row 2 \(lines 3 to 5\): text follows a closing .* in line 5"),
        ('a,x\n"b \\"c\\" d",y\ne,x\n', r"row 2 \(line 3\): text follows a closing quotation mark.*do not escape it"),
        ('a,x\n"b \\"",y\nc,x\n', r"row 2 \(lines 3 to 4\): a quotation mark opens a text that is never closed"),
        ('a,x\nb,"y\n', r"row 2 \(line 3\): a quotation mark opens a text that is never closed"),
        # One that is closed by chance further below is well-formed, but its text contains what look like rows.
        ('a,x\n"b,y\nheight 5",x\nc,y\n', r"row 2 \(lines 3 to 4\): .*its line 'b,y' looks like a row"),
        ('a,x\n"b \\"",y\nc 5",x\nd,y\n', r"row 2 \(lines 3 to 4\): .*looks like a row"),
        ('a,x\n"b, \\"",y\nc,x\nd 5",x\ne,y\n', r"row 2 \(lines 3 to 5\): .*looks like a row"),
        ("a,x,\nb,y\n", r"row 2 \(line 3\) has 2 cells, but row 1 has 3; put"),
        ("a,x\nb,y,\n", r"row 2 \(line 3\) has 3 cells, but row 1 has 2; put"),
        ("a,x,z\nb,y,\n", r"row 1 \(line 2\) has 3 cells, but the header names 2 columns; put quotation marks"),
    ],
)
def test_malformed_csv_is_reported_with_its_line(tmp_path: Path, content: str, message: str) -> None:
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
def test_rows_inside_a_quoted_text_are_detected_in_any_column(
    tmp_path: Path, header: str, rows: str, line: str
) -> None:
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
def test_commas_and_line_breaks_in_a_text_are_not_rows(tmp_path: Path, header: str, row: str, text: str) -> None:
    other = "a,y\nb,x" if header.startswith("sentence") else "y,a\nx,b"
    assert cells(written(tmp_path, "csv", f"{header}\n{row}\n{other}\n")) == [(text, "x"), ("a", "y"), ("b", "x")]


def test_unused_columns_may_have_the_same_name(tmp_path: Path) -> None:
    assert cells(written(tmp_path, "csv", "n,n,sentence,label\n1,2,a,x\n1,2,b,y\n")) == [("a", "x"), ("b", "y")]


def test_a_tab_in_a_tsv_text_has_its_own_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 3\) has 3 cells, but .* 2 columns; a text in a tsv file cannot"):
        cells(written(tmp_path, "tsv", 'sentence\tlabel\na\tx\n"b\tc"\ty\n'))


def test_text_in_an_unnamed_last_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(line 2\) has 'x' in a column without a name; add its name"):
        cells(written(tmp_path, "csv", "sentence,label,\nWell a, the tail,x\nb,y,\n"))


def test_a_quoted_text_may_have_several_lines(tmp_path: Path) -> None:
    content = 'sentence,label\n"Dear Bob,\nyes, I am.\r\nAnn",x\n"say ""hi""",y\n5" tall,x\n'
    texts = ["Dear Bob,\nyes, I am.\r\nAnn", 'say "hi"', '5" tall']
    assert [text for text, _ in cells(written(tmp_path, "csv", content))] == texts
