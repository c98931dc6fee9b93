"""The separator of csv files: finetune/data/csv_delimiter.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.csv_delimiter import find_delimiter
from finetune.errors import DataError
from tests.support.data_files import cells, written


@pytest.mark.parametrize(
    ("header", "names", "delimiter"),
    [
        ("a;b\n", ["a", "b"], ";"),
        ("a\tb\n", ["a"], "\t"),
        ("a|b\n", [], "|"),
        ("a,b;c\n", ["a"], ","),
        ("a,b;c\n", ["a,b", "c"], ";"),  # the columns exist only with the semicolon
        ("a,b;c\n", ["x"], ","),
        ("a,b;c\n", [], ","),
        ('"a;b",c\n', ["c"], ","),
        ('"first\nline";c\n', ["c"], ";"),
        ("\n\na;b\n", ["a"], ";"),
        ("a\n", ["a"], ","),
        ("", ["a"], ","),
    ],
)
def test_the_header_decides(header: str, names: list[str], delimiter: str) -> None:
    assert find_delimiter(header.splitlines(keepends=True), names) == delimiter


@pytest.mark.parametrize(("sign", "given"), [(";", None), ("\t", None), ("|", None), (":", ":"), ("\t", "tab")])
def test_files_with_another_separator(tmp_path: Path, sign: str, given: str | None) -> None:
    content = f'sentence{sign}label\n"a{sign}b"{sign}x\nc,d{sign}y\n'
    assert cells(written(tmp_path, "csv", content), delimiter=given) == [(f"a{sign}b", "x"), ("c,d", "y")]


def test_a_wrong_separator_says_so(tmp_path: Path) -> None:
    file = written(tmp_path, "csv", "sentence;label\na;x\n")
    with pytest.raises(
        DataError, match=r"read with the separator ',', but its header .* separated by ';'; set data\.delimiter"
    ):
        cells(file, delimiter=",")
    with pytest.raises(DataError, match=r"has no column 'label' .*it has sentence, class"):
        cells(written(tmp_path, "csv", "sentence;class\na;x\n"))
    with pytest.raises(DataError, match=r"d\.tsv was read with the separator '\\t', but .* separated by ','"):
        cells(written(tmp_path, "tsv", "sentence,label\na,x\n"))
    with pytest.raises(ValueError, match=r"the delimiter is ';;'; it must be one character, such as ; or tab"):
        cells(file, delimiter=";;")
