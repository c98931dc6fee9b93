from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run of the small classifier."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def adapted_run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run with LoRA."""
    return Path(shutil.copytree(lora_run, tmp_path / "run"))
