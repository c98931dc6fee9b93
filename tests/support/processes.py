"""Commands started as processes, and the check that several processes take the steps of one."""

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
    own = {
        **os.environ,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **environment,
    }
    own.pop("COLUMNS", None)
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def finetune(*arguments: str | Path, folder: Path, **environment: str) -> Done:
    return start([sys.executable, "-m", "finetune.cli", *arguments], folder, **environment)


def check_steps(found: plain_steps.Found) -> None:
    """Every step's whole gradient and loss are those of one plain batch."""
    # Sums are added up in another order: measured 4.2e-6 of the largest element of the gradient, and 1.2e-6 of the
    # loss, for one, two and three processes. One row weighed wrong moves either by percents.
    assert max(found["distances"]) < FLOAT32
    assert found["losses"] == pytest.approx(found["plain_losses"], rel=FLOAT32)
