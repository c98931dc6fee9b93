"""Sweeps of real runs, and sweeps of several processes on one database."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.cli import main
from finetune.pipeline.sweep import sweep
from finetune.pipeline.train_stage import OnEvaluation
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.recipe.sweep_loader import load_sweep
from finetune.runs.run_files import read_scores
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.sweep_results import SweepFolder, read_sweep
from tests.support.finished_runs import SCRATCH, recipe
from tests.support.recipes import MINIMAL

RATE = "training.learning_rate"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgres = pytest.mark.skipif(
    sys.platform == "win32" or not POSTGRES, reason="no PostgreSQL server program (Debian: apt-get install postgresql)"
)
_SECONDS = 60  # for a process or a server to do what takes it less than one


def test_a_sweep_of_runs_can_be_started_again_and_its_best_recipe_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = recipe(SCRATCH, training={"num_train_epochs": 2}, checkpoint={"save_strategy": "epoch"})
    Path("base.yaml").write_text(yaml.safe_dump({**content, "head_importance": None}))
    keys = {"recipe": "base.yaml", "sampler": "grid", "space": {RATE: [1e-9, 1e-2]}}
    Path("rates.yaml").write_text(yaml.safe_dump(keys))
    assert main(["check", "rates.yaml"]) == 0
    assert (
        "2 trials (grid) over training.learning_rate; maximize accuracy on the validation rows"
        in capsys.readouterr().out
    )
    assert main(["sweep", "rates.yaml"]) == 0
    assert "2 of 2 finished: trial 1 (learning_rate " in capsys.readouterr().out

    folder = SweepFolder(tmp_path / "runs" / "rates")
    result = read_sweep(folder.path)
    assert [trial.state for trial in result.trials] == ["complete", "complete"]
    for trial in result.trials:
        run = RunFolder(folder.trial(trial.number))
        scores = read_scores(run)
        assert scores.keys() == {"validation"}  # the recipe has test rows
        assert trial.values == {"accuracy": scores["validation"].metrics["accuracy"].value}
        assert trial.intermediate.keys() == {1, 2}
        assert not run.checkpoints.exists()
        assert "Report: " in folder.log(trial.number).read_text()
    best = load_recipe(folder.best_recipe)
    assert best.training.learning_rate == result.trial(result.best[0]).parameters[RATE]
    assert (len(best.data.test_rows or []), best.checkpoint.resume_from_checkpoint) == (40, None)
    assert folder.report.is_file()

    page = folder.report.read_bytes()
    folder.report.unlink()
    assert main(["report", str(folder.path)]) == 0
    assert folder.report.read_bytes() == page
    capsys.readouterr()
    for command in ("evaluate", "export", "predict", "compare"):
        assert main([command, str(folder.path), *[str(folder.path)] * (command == "compare")]) == 2
        message = f"{folder.path} is a sweep; name the folder of one of its trials, such as {folder.trial(0)}, or train"
        assert message in capsys.readouterr().err

    monkeypatch.setattr("finetune.pipeline.sweep_trial.train", lambda *_, **__: pytest.fail("a trial ran again"))
    assert main(["sweep", "rates.yaml"]) == 0
    assert "2 of 2 trials finished" in capsys.readouterr().out
    assert main(["sweep", "rates.yaml", "seed=5"]) == 2
    assert "the study 'rates' was started with another recipe; restore it, or name" in capsys.readouterr().err


def test_a_trial_with_seeds_is_a_series_whose_values_are_means(tmp_path: Path) -> None:
    content = recipe(SCRATCH, training={"num_train_epochs": 1}, checkpoint={"save_strategy": "epoch"})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**content, "head_importance": None}))
    keys: dict[str, Any] = {"recipe": "base.yaml", "sampler": "grid", "space": {RATE: [1e-2]}, "seeds": [1, 2]}
    keys |= {"output_dir": str(tmp_path / "out"), "objectives": [{"name": "loss"}]}
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(keys))
    result = sweep(load_sweep(tmp_path / "seeds.yaml"))
    (trial,), seeds = result.trials, result.seeds
    assert seeds == [1, 2]
    series = SeriesFolder(tmp_path / "out" / "trials" / "0000", [1, 2])
    losses = [read_scores(series.member(seed))["validation"].loss for seed in (1, 2)]
    assert losses[0] != losses[1]
    assert trial.values == {"loss": pytest.approx(sum(losses) / 2, rel=1e-12)}
    assert trial.intermediate == {1: pytest.approx(losses[0], rel=1e-6)}  # the evaluation of the first seed alone
    assert not [seed for seed in seeds if series.member(seed).checkpoints.exists()]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL server on a free port of this machine, and yield the URL of its database."""
    # Not in pytest's folder, which only its owner may enter.
    scratch, bin_folder = tempfile.TemporaryDirectory(), POSTGRES[-1].parent
    data = Path(scratch.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_user: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(data, "postgres", "postgres")
        as_user |= {"user": "postgres", "group": "postgres", "cwd": "/"}
    initialize = [bin_folder / "initdb", "-D", data, "-U", "me", "-A", "trust", "--no-sync"]
    subprocess.run(initialize, check=True, **as_user)
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(data), "-c", "fsync=off"]
    server = subprocess.Popen([bin_folder / "postgres", "-D", data, *options], **as_user)
    try:
        deadline = time.monotonic() + _SECONDS
        while subprocess.run(
            [bin_folder / "pg_isready", "-p", str(port), "-h", "127.0.0.1"], check=False, **as_user
        ).returncode:
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.05)
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(_SECONDS)
        scratch.cleanup()


def _work(sweep_file: Path, log: Path, *, hang: bool = False) -> None:
    """Run a sweep in this process; each trial adds a line to a log, or hangs."""

    def run(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        with log.open("a") as file:
            file.write(f"{Path(loaded.output_dir).name} {'started' if hang else 'done'}\n")
        if hang:
            time.sleep(_SECONDS)
        return {"accuracy": loaded.training.learning_rate}  # type: ignore[dict-item]

    sweep(load_sweep(sweep_file), run=run)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=needs_postgres)])
def test_a_killed_process_loses_no_trial_of_a_study_that_two_processes_share(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "win32":
        pytest.skip("needs fork")
    monkeypatch.setattr("finetune.pipeline.sweep.importance", lambda *_: {})
    monkeypatch.setattr("finetune.pipeline.sweep.write_sweep_report", lambda _: None)
    storage = request.getfixturevalue("postgresql") if database == "postgresql" else None
    (tmp_path / "base.yaml").write_text(MINIMAL)
    keys: dict[str, Any] = {"recipe": "base.yaml", "sampler": "grid", "space": {RATE: [0.1, 0.2, 0.3, 0.4, 0.5]}}
    keys |= {"output_dir": str(tmp_path / "out"), "storage": storage}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(keys))
    file, log = tmp_path / "rates.yaml", tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    hanging = fork.Process(target=_work, args=(file, log), kwargs={"hang": True})
    hanging.start()
    deadline = time.monotonic() + _SECONDS
    while not log.exists():
        assert time.monotonic() < deadline
        assert hanging.is_alive()
        time.sleep(0.02)
    both = [fork.Process(target=_work, args=(file, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(_SECONDS)
    assert [process.exitcode for process in both] == [0, 0]
    states = [trial.state for trial in read_sweep(tmp_path / "out").trials]
    assert states == ["running", *["complete"] * 4]  # a living process keeps its trial
    hanging.kill()
    hanging.join(_SECONDS)
    _work(file, log)
    result = read_sweep(tmp_path / "out")
    assert [trial.state for trial in result.trials] == ["complete"] * 5
    assert sorted(float(str(trial.parameters[RATE])) for trial in result.trials) == keys["space"][RATE]
    done = [line.split()[0] for line in log.read_text().splitlines() if line.endswith("done")]
    assert sorted(done) == [f"{number:04}" for number in range(5)]  # each once; the killed one in the end
    assert done[-1] == "0000"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (
            "nonsense",
            "storage 'nonsense' is not a URL such as sqlite:///study.db or postgresql+psycopg://user@host/data",
        ),
        ("nodialect://x/y", "the driver 'nodialect' is not installed; install the SQLAlchemy driver of nodialect"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/x",
            "storage postgresql+psycopg://me:***@127.0.0.1:1/x cannot be used",
        ),
        (
            "sqlite:////proc/nowhere/x.db",
            "storage sqlite:////proc/nowhere/x.db cannot be used: unable to open database",
        ),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_message(
    storage: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = recipe(SCRATCH)
    Path("base.yaml").write_text(yaml.safe_dump(content))
    Path("x.yaml").write_text(yaml.safe_dump({"recipe": "base.yaml", "trials": 1, "space": {RATE: [1e-3]}}))
    assert main(["sweep", "x.yaml", "--storage", storage]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "secret" not in error
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.json"))
