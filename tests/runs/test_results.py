from __future__ import annotations

import math
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.head_results import HeadAnalysis, HeadScores
from finetune.runs.json_files import append_line, read_json, write_json, write_text
from finetune.runs.results import MetricValue, SplitScores, SplitSummary
from finetune.runs.run_folder import RunFolder

SCORES = {"test": SplitScores(3, 0.1 + 0.2, {"accuracy": MetricValue(1 / 3, 0.1, 0.9)}, [], [[1, 2], [0, 0]])}


def test_results_come_back_to_the_last_digit(tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", SCORES)
    assert read_json(tmp_path / "scores.json", dict[str, SplitScores]) == SCORES


def test_a_number_that_is_none_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, SCORES)
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"test": SplitScores(1, math.nan, {})})
    assert read_json(path, dict[str, SplitScores]) == SCORES
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no heads\.json in"):
        read_json(tmp_path / "heads.json", HeadAnalysis)
    write_text(tmp_path / "heads.json", "{}")
    with pytest.raises(DataError, match=r"heads\.json is damaged or of another version \(methods"):
        read_json(tmp_path / "heads.json", HeadAnalysis)


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for step in (1, 2):
        append_line(path, {"step": step})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_every_name_in_the_run_folder_is_different(tmp_path: Path) -> None:
    written = RunFolder(tmp_path).written()
    assert len(written) == len(set(written)) == 17
    assert all(path.parent == tmp_path for path in written)


@pytest.mark.parametrize(
    ("shared", "said"),
    [(0, ""), (4, "All 4 test rows are training rows too"), (1, "1 of 4 test rows are training rows too")],
)
def test_shared_rows_are_told(shared: int, said: str) -> None:
    note = SplitSummary(4, {}, 1.0, 1, 0.0, shared).memory_note("test")
    assert note.startswith(said)
    assert bool(note) == bool(shared)


def test_heads_that_a_layer_lacks_are_not_ranked() -> None:
    heads = HeadScores(
        "gradient", "", "test", 1, [[1.0, 3.0], [2.0, None]], [[None, None], [None, None]], [(0, 0), (1, 0), (0, 1)]
    )
    assert [(cell.layer, cell.head) for cell in heads.sorted_by_value()] == [(0, 1), (1, 0), (0, 0)]
