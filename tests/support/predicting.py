"""Csv files for tests of the command `predict`, and what it printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

Main = Callable[..., tuple[str, str]]  # runs `predict`, and returns what was printed


def error(printed: tuple[str, str]) -> str:
    """Return the only error message; nothing was written to standard output."""
    assert printed[0] == ""
    assert printed[1].count("error: ") == 1
    return printed[1].partition("error: ")[2]


def write_csv(path: Path, table: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return path


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))
