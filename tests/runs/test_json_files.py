from __future__ import annotations

import math
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.atomic_files import write_text
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import append_line, damaged_file, read_bytes, read_json, write_json
from finetune.runs.results import MetricValue, SplitScores

SCORES = {"test": SplitScores(3, 0.1 + 0.2, {"accuracy": MetricValue(1 / 3, 0.1, 0.9)}, [], [[1, 2], [0, 0]])}


def test_results_are_loaded_exactly(tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", SCORES)
    assert read_json(tmp_path / "scores.json", dict[str, SplitScores]) == SCORES


def test_nan_is_rejected_and_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, SCORES)
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"test": SplitScores(1, math.nan, {})})
    assert read_json(path, dict[str, SplitScores]) == SCORES
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_missing_and_invalid_files_are_reported(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("baselines.json", "remove the file, and `finetune evaluate RUN` writes it again"),
        ("heads.json", "remove the file, and `finetune heads RUN` writes it again"),
        ("recipe.yaml", "copy the recipe of the run to that path"),
        ("training.json", "finish the run (checkpoint.resume_from_checkpoint=auto) or repeat it"),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_writes_it_again(tmp_path: Path, name: str, fix: str) -> None:
    assert str(damaged_file(tmp_path / name, "cut")).endswith(f"{name} is damaged or of another version (cut); {fix}")


def test_a_missing_file_is_named_with_the_command_that_writes_it_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a finished run has one: `finetune evaluate RUN` writes it again$"):
        read_bytes(tmp_path / "scores.json")
