from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.cli import main
from tests.support.hub_server import HubServer, hub_server
from tests.support.predicting import Main, write_csv


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run of the small classifier."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def adapted_run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run with LoRA."""
    return Path(shutil.copytree(lora_run, tmp_path / "run"))


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Main:
    """A function that runs `predict` with arguments, expects an exit code, and returns what was printed."""

    def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        result = main(["predict", *map(str, arguments)])
        printed = capsys.readouterr()
        assert result == code, printed.err
        return printed.out, printed.err

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A csv file with two texts."""
    return write_csv(tmp_path / "texts.csv", [{"sentence": "the cat sat"}, {"sentence": "a dog"}])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in for the hub, to which `publish` sends its requests."""
    with hub_server(monkeypatch) as server:
        yield server
