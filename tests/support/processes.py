"""Commands started as processes, and the check that several processes take the same steps as one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import ROOT, plain_steps
from tests.support.helpers import FLOAT32, HANG_SECONDS

Done = subprocess.CompletedProcess[str]


def process_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that imports this project and has its caches in `folder`."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def start(command: Sequence[str | Path], folder: Path, **environment: str) -> Done:
    """Run a command of this Python's environment in `folder`, offline, with an empty cache."""
    process_environ = {
        **os.environ,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **environment,
    }
    process_environ.pop("COLUMNS", None)
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=process_environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )


def check_steps(result: plain_steps.Measurements) -> None:
    """Assert that the full gradient and the loss of every step equal those of one plain batch."""
    # The order of sums differs: measured 4.2e-6 of the largest element of the gradient, and 1.2e-6 of the loss, for
    # one, two and three processes. One row with a wrong weight changes both by percents.
    assert max(result["distances"]) < FLOAT32
    assert result["losses"] == pytest.approx(result["plain_losses"], rel=FLOAT32)
