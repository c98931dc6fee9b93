from __future__ import annotations

import re
import subprocess
import sys

from tests.support import ROOT
from tests.support.helpers import HANG_SECONDS
from tests.support.killing import unlike


def test_killed_runs_end_with_the_same_bits() -> None:
    # A process of its own, which forks after its imports and before any thread. The seed is drawn, and printed.
    command = [sys.executable, "-m", "tests.hostile.soak", "--at", "random-writes", "--points", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed ")
    assert done.stdout.count("the same bits\n") == 8 + 1
    (killed,) = re.findall(r"^(\d+) processes killed", done.stdout, re.MULTILINE)
    assert int(killed) >= 8


def test_what_is_unlike_is_told() -> None:
    assert unlike({"a": [1, {"b": 2.0}], "speed": 1}, {"a": [1, {"b": 2.0}], "speed": 2}) == []
    assert unlike({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}) == ["/a/1/b: 2.0 and 2.5"]
    assert unlike({"a": [1]}, {"a": [1, 2]}) == ["/a: [1] and [1, 2]"]
