from __future__ import annotations

import re

from tests.support import ROOT
from tests.support.forked import forked
from tests.support.killing import differences


def test_killed_and_resumed_runs_are_bit_identical() -> None:
    # A separate process, which forks after its imports and before it starts a thread. It draws and prints a seed.
    done = forked(["-m", "tests.hostile.soak", "--at", "random-writes", "--points", "8"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed ")
    assert done.stdout.count("the same bits\n") == 8
    (killed,) = re.findall(r"^(\d+) processes killed", done.stdout, re.MULTILINE)
    assert int(killed) >= 8


def test_differences_are_reported_by_path() -> None:
    assert differences({"a": [1, {"b": 2.0}], "speed": 1}, {"a": [1, {"b": 2.0}], "speed": 2}) == []
    assert differences({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}) == ["/a/1/b: 2.0 and 2.5"]
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["/a: [1] and [1, 2]"]
