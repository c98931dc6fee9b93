"""The table of the start-up benchmark, and how it stops training at the first step."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from tests.benchmarks.rounds import Record
from tests.benchmarks.startup import OTHER, OURS, contenders, measured, table
from tests.support import ROOT


def test_table_has_ratios_within_rounds_and_skips_what_was_not_measured() -> None:
    rounds = [
        {f"train; {OURS}": {"cpu": 2.0, "wall": 3.0}, f"train; {OTHER}": {"cpu": 4.0, "wall": 5.0}},
        {f"train; {OURS}": {"cpu": 3.0, "wall": 3.0}, f"train; {OTHER}": {"cpu": 4.0, "wall": 5.0}},
    ]
    lines = table(Record("startup", {}, {}, rounds)).splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("| 4.00 (4.00 to 4.00) | 0.62 (0.50 to 0.75) |")


def test_a_command_that_a_checkout_lacks_is_not_measured_there(tmp_path: Path) -> None:
    (tmp_path / "old/finetune").mkdir(parents=True)
    args = argparse.Namespace(run=tmp_path, recipe=ROOT / "recipes/toy.yaml", against=tmp_path / "old", libraries=None)
    assert list(contenders(args, tmp_path)) == [
        *(f"train; {checkout}" for checkout in (OURS, OTHER)),
        f"predict; {OURS}",
        f"load_classifier; {OURS}",
    ]


def test_a_process_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    result = measured(["-c", "raise SystemExit(3)"], "", tmp_path, 3)
    assert result["cpu"] > 0
    assert result["wall"] > 0
    with pytest.raises(RuntimeError, match=r"ended with 1: (.|\n)*no such thing"):
        measured(["-c", "raise ValueError('no such thing')"], str(sys.prefix), tmp_path, 0)
