"""Drawn rows, the log of finished cells, and the order in which cells run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.cells import (
    Cell,
    Line,
    ResultsLog,
    draw,
    grid,
    load_task,
    parse_seeds,
    read_lines,
    work_through,
)  # fmt: skip
from tests.support import ROOT

CELLS = [Cell("trec", "200", seed, variant) for seed in (0, 1) for variant in ("plain", "ema")]


def line(cell: Cell) -> Line:
    return {
        "data": cell.data, "rows": cell.rows, "seed": cell.seed, "variant": cell.variant, "metric": "accuracy",
        "score": 0.5, "steps": 3, "train_seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> ResultsLog:
    return ResultsLog(tmp_path / "bench" / "log.jsonl")


def run_all(cells: list[Cell], log: ResultsLog, ran: list[Cell], *, failing: Cell | None = None) -> list[str]:
    def run(cell: Cell) -> Line | None:
        if cell.variant == "ema" and Cell(cell.data, cell.rows, cell.seed, "plain") not in log.finished():
            return None
        ran.append(cell)
        if cell == failing:
            raise ValueError("out of luck")
        return line(cell)

    def wait() -> None:
        raise AssertionError("nobody else runs cells")

    return work_through(cells, log, run, wait=wait, print_line=lambda text: None)


def test_rows_are_the_same_for_the_same_seed_and_more_rows_extend_fewer() -> None:
    few, many = draw(100, None, "10", 3), draw(100, None, "60", 3)
    assert few.tolist() == many[:10].tolist() == draw(100, None, "10", 3).tolist()
    assert len(set(many.tolist())) == 60
    assert few.tolist() != draw(100, None, "10", 4).tolist()


def test_rows_per_class_are_as_many_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    drawn = draw(84, labels, "5/class", 0)
    assert np.bincount(labels[drawn]).tolist() == [5, 5, 4]
    assert len(set(drawn.tolist())) == 14
    assert labels[drawn].tolist() != sorted(labels[drawn])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0", "rows is '0'"),
        ("5/label", "rows is '5/label'"),
        ("101", "there are only 100"),
        ("2/class", "several labels"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(rows: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(100, None, rows, 0)


def write_data(folder: Path, columns: dict[str, list[object]]) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    (folder / "labels.json").write_text('["no", "yes"]')


def test_empty_texts_and_test_rows_that_are_training_rows_are_left_out(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(8)]
    texts[2] = "  "
    write_data(tmp_path / "small", {"sentence": texts, "label": [0, 1] * 4})
    (tmp_path / "small" / "leaks.json").write_text(json.dumps({"test_in_train": [5, 7]}))
    task = load_task(tmp_path / "small")
    assert sorted(task.train_rows("7", 0)["sentence"].to_pylist()) == sorted(set(texts) - {"  "})
    scored = task.scored_rows("test", None)["sentence"].to_pylist()
    assert sorted(scored) == ["text 0", "text 1", "text 3", "text 4", "text 6"]
    assert task.scored_rows("test", 3)["sentence"].to_pylist() == scored[:3]
    assert (task.metric, task.recipe()["data"]) == ("accuracy", {"text_column": "sentence", "label_column": "label"})
    with pytest.raises(ValueError, match=r"validation\.parquet does not exist"):
        task.scored_rows("validation", None)


def test_pairs_and_several_labels_are_recognized(tmp_path: Path) -> None:
    write_data(tmp_path / "pairs", {"sentence1": ["a"], "sentence2": ["b"], "label": [1]})
    assert load_task(tmp_path / "pairs").recipe()["data"]["text_pair_column"] == "sentence2"
    write_data(tmp_path / "sets", {"sentence": ["a", "b"], "labels": [[0, 1], []]})
    task = load_task(tmp_path / "sets")
    assert task.recipe()["task"]["problem_type"] == "multi_label_classification"
    assert task.metric == "f1_micro"
    assert sorted(task.train_rows("2", 0)["labels"].to_pylist()) == [[], [0, 1]]


def test_a_grid_has_all_cells_by_seed_then_variant() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    cells = grid(["trec:200", "banking77:5/class"], [0, 1], ["plain", "ema"])
    assert [(cell.seed, cell.variant, cell.rows) for cell in cells[:3]] == [
        (0, "plain", "200"), (0, "plain", "5/class"), (0, "ema", "200"),
    ]  # fmt: skip
    assert len(set(cells)) == 8


def test_finished_cells_are_skipped(log: ResultsLog) -> None:
    log.append(line(CELLS[0]))
    ran: list[Cell] = []
    assert run_all(CELLS, log, ran) == []
    assert ran == CELLS[1:]
    assert run_all(CELLS, log, ran) == []
    assert len(ran) == 3
    assert list(log.finished()) == CELLS


def test_a_cell_that_needs_another_one_runs_after_it(log: ResultsLog) -> None:
    ran: list[Cell] = []
    assert run_all([CELLS[1], CELLS[0]], log, ran) == []
    assert ran == [CELLS[0], CELLS[1]]


def test_a_cell_that_fails_does_not_stop_the_others(log: ResultsLog) -> None:
    ran: list[Cell] = []
    (error,) = run_all(CELLS, log, ran, failing=CELLS[0])
    assert "out of luck" in error
    assert ran == [CELLS[0], CELLS[2], CELLS[3]]  # CELLS[1] needs CELLS[0]
    assert run_all(CELLS, log, ran) == []
    assert set(log.finished()) == set(CELLS)


def test_a_line_that_a_killed_process_left_unfinished_is_skipped(log: ResultsLog) -> None:
    log.append(line(CELLS[0]))
    with log.file.open("a") as file:
        file.write('{"data": "tr')
    log.append(line(CELLS[1]))
    assert list(log.finished()) == CELLS[:2]
    assert len(read_lines(log.file)) == 2
    assert read_lines(log.file.with_name("other")) == []


def test_a_cell_that_another_process_runs_cannot_be_claimed(log: ResultsLog) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.benchmarks.cells import Cell, ResultsLog\n"
        "with ResultsLog(Path(sys.argv[1])).claim(Cell('trec', '200', 0, 'plain')) as claimed:\n"
        "    print(claimed, flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script, str(log.file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with log.claim(CELLS[0]) as claimed, log.claim(CELLS[1]) as another:
            assert (claimed, another) == (False, True)
        other.kill()
        other.wait()
    with log.claim(CELLS[0]) as claimed:
        assert claimed
