"""Cells of a grid of training runs: which rows a cell trains on and is scored on, and the log of finished cells.

A cell is a data set, a number of training rows, a seed and a variant. Data sets are folders with train.parquet,
validation.parquet or test.parquet, and labels.json. Several processes can work on one log: each claims a cell with a
lock that ends with the process, and appends one JSON line per finished cell.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CELL_KEYS = {"data", "rows", "seed", "variant"}
SAMPLE_SEED = 0  # of the scored rows, the same for every cell
Line = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training run of a grid.

    Attributes:
        data: name of the data set's folder.
        rows: number of random training rows ("200"), or of rows per class ("5/class").
        seed: seed of the drawn rows and of training.
        variant: what is trained.
    """

    data: str
    rows: str
    seed: int
    variant: str


def grid(groups: Sequence[str], seeds: Iterable[int], variants: Sequence[str]) -> list[Cell]:
    """Return the cells of `data:rows` groups, by seed, then variant, so that an unfinished grid can be compared."""
    pairs = [group.split(":") for group in groups]
    return [Cell(data, rows, seed, variant) for seed in seeds for variant in variants for data, rows in pairs]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of "0-4", "3" or "0,2,5-7"."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


@dataclass(frozen=True)
class Task:
    """A data set's folder, its labels and its columns."""

    folder: Path
    label_names: list[str]
    text_columns: list[str]
    label_column: str

    @property
    def multi_label(self) -> bool:
        return self.label_column == "labels"

    @property
    def metric(self) -> str:
        return "f1_micro" if self.multi_label else "accuracy"

    def recipe(self) -> dict[str, dict[str, Any]]:
        """Return the recipe's sections `task` and `data`, without the files."""
        problem_type = {"problem_type": "multi_label_classification"} if self.multi_label else {}
        pair = {"text_pair_column": self.text_columns[1]} if len(self.text_columns) > 1 else {}
        columns = {"text_column": self.text_columns[0], **pair, "label_column": self.label_column}
        return {"task": {"label_names": self.label_names, **problem_type}, "data": columns}

    def read(self, split: str) -> pa.Table:
        """Return the text and label columns of a split; ValueError if there is no such file."""
        file = self.folder / f"{split}.parquet"
        if not file.is_file():
            raise ValueError(f"{file} does not exist")
        return pq.read_table(file, columns=[*self.text_columns, self.label_column])

    def rows_with_text(self, split: str) -> pa.Table:
        """Return the rows of a split without those with an empty text, which finetune rejects."""
        table = self.read(split)
        return table.filter(pa.array(self._has_text(table)))

    def train_rows(self, rows: str, seed: int) -> pa.Table:
        """Return the training rows of a cell."""
        table = self.read("train")
        usable = np.flatnonzero(self._has_text(table))
        labels = None if self.multi_label else table.column(self.label_column).to_numpy()[usable]
        return table.take(usable[draw(len(usable), labels, rows, seed)])

    def scored_rows(self, split: str, max_rows: int | None) -> pa.Table:
        """Return the rows that every cell of the data set is scored on: no training row, at most `max_rows`."""
        table = self.read(split)
        usable = self._has_text(table)
        leaks = self.folder / "leaks.json"
        if leaks.is_file():
            usable[json.loads(leaks.read_text(encoding="utf-8")).get(f"{split}_in_train", [])] = False
        order = np.random.default_rng(SAMPLE_SEED).permutation(np.flatnonzero(usable))
        return table.take(order[:max_rows])

    def _has_text(self, table: pa.Table) -> np.ndarray:
        """Return a mask (N,) of the rows without an empty text, which finetune rejects."""
        columns = [table.column(name).to_pylist() for name in self.text_columns]
        return np.array([all(text and text.strip() for text in texts) for texts in zip(*columns, strict=True)])


def load_task(folder: Path) -> Task:
    """Return the data set in a folder."""
    names = pq.read_schema(folder / "train.parquet").names
    texts = ["sentence1", "sentence2"] if "sentence1" in names else ["sentence"]
    label_names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return Task(folder, label_names, texts, "labels" if "labels" in names else "label")


def draw(count: int, labels: np.ndarray | None, rows: str, seed: int) -> np.ndarray:
    """Return indices of rows drawn at random: the smaller numbers of one seed are the first of the larger ones.

    Args:
        count: number of rows to draw from.
        labels: class ids (count,); None for several labels per row.
        rows: a number of rows, or "K/class" for K rows of each class.
    """
    order = np.random.default_rng(seed).permutation(count)
    number, _, unit = rows.partition("/")
    if unit not in ("", "class") or not number.isdigit() or int(number) < 1:
        raise ValueError(f"rows is '{rows}'; give a number, or a number per class, such as 5/class")
    if unit:
        if labels is None:
            raise ValueError(f"rows is '{rows}', but the rows have several labels; give a number")
        chosen = [order[labels[order] == label][: int(number)] for label in np.unique(labels)]
        return np.random.default_rng(seed).permutation(np.concatenate(chosen))
    if int(number) > count:
        raise ValueError(f"rows is {rows}, but there are only {count}")
    return order[: int(number)]


class ResultsLog:
    """A file of JSON lines, one per finished cell, to which several processes append."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._claims = os.open(file.with_suffix(".claims"), os.O_RDWR | os.O_CREAT)

    def lines(self) -> list[Line]:
        """Return all lines. A line that a killed process left unfinished is skipped."""
        return read_lines(self.file)

    def finished(self) -> dict[Cell, Line]:
        """Return the finished cells: the lines that name a cell."""
        return {cell_of(line): line for line in self.lines() if line.keys() >= CELL_KEYS}

    def append(self, line: Line) -> None:
        """Append one line; it is on the disk when this returns."""
        with self.file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
            torn = b"\n" if end and file.read(1) != b"\n" else b""
            file.write(torn + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Yield whether this process has the cell for itself; the lock also ends when the process is killed."""
        offset = zlib.crc32(json.dumps(asdict(cell)).encode())
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, offset)


def cell_of(line: Line) -> Cell:
    """Return the cell of a line."""
    return Cell(line["data"], line["rows"], line["seed"], line["variant"])


def read_lines(file: Path) -> list[Line]:
    """Return the complete lines of a log, [] if there is none."""
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # a process was killed while it wrote this line
            continue
    return lines


def work_through(
    cells: Sequence[Cell],
    log: ResultsLog,
    run: Callable[[Cell], Line | None],
    *,
    wait: Callable[[], None],
    print_line: Callable[[str], None],
) -> list[str]:
    """Run every cell that is not finished, in order, and append its line; return the errors.

    Other processes may work on the same log. A cell that they run is not waited for, unless nothing else is left.

    Args:
        run: returns the line of a cell, or None if another cell that is not finished has to be finished first.
        wait: called when all that is left is run by others.
    """
    failed: dict[Cell, str] = {}
    while True:
        finished = log.finished()
        todo = [cell for cell in cells if cell not in finished and cell not in failed]
        busy, ran = False, False
        for cell in todo:
            with log.claim(cell) as claimed:
                busy |= not claimed
                if not claimed or cell in log.finished():
                    continue
                try:
                    line = run(cell)
                except Exception as error:
                    failed[cell] = f"{cell}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
                    print_line(failed[cell])
                    continue
                if line is None:
                    continue
                log.append(line)
                print_line(f"{len(cells) - len(todo) - len(failed) + 1} of {len(cells)}: {describe(line)}")
            ran = True
            break  # start again, in case others have finished cells that an earlier one needs
        if not todo or not (ran or busy):
            return list(failed.values())
        if not ran:
            wait()


def work(cells: Sequence[Cell], log: ResultsLog, run: Callable[[Cell], Line | None]) -> None:
    """Run every cell that is not finished, print each, and exit with the errors if there were any."""
    errors = work_through(cells, log, run, wait=lambda: time.sleep(20), print_line=lambda text: print(text, flush=True))
    if errors:
        raise SystemExit("\n".join(["failed, and tried again at the next start:", *errors]))


def describe(line: Line) -> str:
    """Return one line of text about a finished cell."""
    parts = [f"{line['metric']} {line['score']:.4f}"] if "score" in line else []
    parts += [f"{line['steps']} steps in {line['train_seconds']:.0f} s"] if "train_seconds" in line else []
    return f"{line['data']} {line['rows']} seed {line['seed']} {line['variant']}: {', '.join(parts)}"
