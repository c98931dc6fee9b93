from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetune.report import write_report
from finetune.report.label_errors import MAX_SHOWN, error_groups, error_positions
from finetune.report.page import render_report
from finetune.report.run_record import read_record
from finetune.runs.label_errors import LabelError, write_label_errors
from finetune.runs.run_folder import RunFolder
from tests.support.known_run import known_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with known results and without a model."""
    return known_run(tmp_path / "known")


def error(split: str, row: int, text: str = "a <b>text</b>") -> LabelError:
    return LabelError(split, row, (text,), "no", "yes", 0.0125, 0.75)


def test_the_first_errors_of_each_split_are_shown(run: RunFolder) -> None:
    table = pq.read_table(run.predictions)
    numbers = table["row"].to_pylist()
    train = [error("train", number) for number in range(1, MAX_SHOWN + 10)]
    test = [error("test", numbers[3]), error("test", numbers[1]), error("test", 999)]
    write_label_errors(run.label_errors, [*train, *test], 1)
    record = read_record(run)
    groups = {group.split: group for group in error_groups(record) or []}
    assert list(groups) == list(record.data)
    assert (groups["train"].total, len(groups["train"].shown)) == (MAX_SHOWN + 9, MAX_SHOWN)
    assert {position for _, position in groups["train"].shown} == {None}
    assert [position for _, position in groups["test"].shown] == [3, 1, None]
    assert error_positions(record) == [3, 1]
    write_report(run)
    html = run.report.read_text()
    assert f'<a href="#row=3" data-row="3">{numbers[3]}</a>' in html
    assert "a &lt;b&gt;text&lt;/b&gt;" in html
    assert "<td>0.013</td><td>0.750</td>" in html
    assert f"The first {MAX_SHOWN} rows; all are in" in html
    assert re.search(r"test: 3 of [\d,]+ rows", html)


def test_the_section_is_shown_only_if_the_labels_were_checked(run: RunFolder) -> None:
    for errors, is_shown in ((None, False), ([], True)):
        if errors is not None:
            write_label_errors(run.label_errors, errors, 1)
        write_report(run)
        assert ('id="label-errors"' in run.report.read_text()) is is_shown
    assert error_positions(read_record(run)) == []


@pytest.mark.parametrize(("share", "has_note"), [(0.2, False), (0.25, True)])
def test_a_note_says_that_the_errors_are_too_many(share: float, has_note: bool, run: RunFolder) -> None:
    rows = read_record(run).data["test"].rows
    write_label_errors(run.label_errors, [error("test", number) for number in range(1, int(share * rows) + 1)], 1)
    notes = {group.split: group.note for group in error_groups(read_record(run)) or []}
    assert [split for split, note in notes.items() if note] == ["test"] * has_note
    write_report(run)
    assert ("more often than the labels are." in run.report.read_text()) is has_note


def test_a_page_without_texts_has_the_rows(run: RunFolder) -> None:
    write_label_errors(run.label_errors, [error("train", 7, "secret words")], 1)
    html = render_report(read_record(run).without_texts(), "known", "")
    assert "secret words" not in html
    assert '<tr><td class="text">7</td><td class="words">–</td>' in html
