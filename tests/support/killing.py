"""Runs that are killed, gone on with, and compared to the bit with one that was not; used by a test and by soak.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from tests.support import ROOT

AUTO = "checkpoint.resume_from_checkpoint=auto"
KILLED = -signal.SIGKILL
_WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
_TIMES = {"samples_per_second", "train_seconds", "eval_seconds", "logged_seconds", "speed"}


def write_recipe(folder: Path, bert: Path, *, lora: bool, processes: int = 1, epochs: int = 3) -> Path:
    """Thirteen rows in steps of four, the last of each epoch with one; saved often, and out of step with the log."""
    rows = [
        {"sentence": f"the cat sat on mat {'now ' * (n % 5)}{n}", "label": "yes" if n % 3 else "no"} for n in range(13)
    ]
    content: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(bert)},
        "data": {"train_rows": rows, "validation_rows": rows[:6], "max_length": 16},
        "training": {
            "num_train_epochs": epochs, "per_device_train_batch_size": 2 // processes, "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2, "use_cpu": True, "num_threads": 1,
        },
        "evaluation": {"metric_for_best_model": "loss", "bootstrap_samples": 100},
        "checkpoint": {"save_strategy": "steps", "save_steps": 2},
        "logging": {"logging_steps": 3},
        "head_importance": None,
    }  # fmt: skip
    if lora:
        content["peft"] = {"r": 2, "lora_dropout": 0.1}
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    return recipe


def count_writes(folder: Path, stop_at: int = 0) -> list[int]:
    """Count this process's writes in a folder from now on, in the list's only place; at `stop_at` it kills itself."""
    count = [0]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (opened or event in _WRITES) and f"{folder}{os.sep}" in f"{arguments[0]}{os.sep}":
            count[0] += 1
            if count[0] == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
    return count


def in_fork(arguments: list[str], folder: Path, stop_at: int = 0, number: int = signal.SIGKILL) -> tuple[int, int]:
    """Run a command of the console in a fork; return its exit code (-9 where it was killed), and its writes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        for stream in (1, 2):
            os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        from finetune.cli import main

        count = count_writes(folder, stop_at)
        code = main(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        os.write(writing, str(count[0]).encode())
        os._exit(code)
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(told or 0)


def in_processes(
    arguments: list[str], folder: Path, processes: int, kill_after: float | None = None
) -> tuple[int, float]:
    """Run a command of the console as people start it; return its exit code, and the seconds from its first checkpoint.

    All its processes are killed `kill_after` seconds after that; before, most of the time goes by with imports.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(launch if processes > 1 else []), str(ROOT / "finetune" / "run.py"), *arguments[1:]]
    with folder.with_suffix(".log").open("ab") as log:
        running = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        began: float | None = None
        while running.poll() is None:
            time.sleep(0.002)
            if began is None and any((folder / "checkpoints").glob("*")):
                began = time.monotonic()
            if began is not None and kill_after is not None and time.monotonic() - began > kill_after:
                _kill(running.pid)
        return running.wait(), time.monotonic() - (began or time.monotonic())


def _kill(launcher: int) -> None:
    """Kill a process and all that it started, which torchrun puts into sessions of their own."""
    for process in (psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def bits(run: Path) -> dict[str, Any]:
    """Return all that a run leaves and that must not depend on its having been killed; tensors as tensors."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "checkpoints": [path.name for path in sorted((run / "checkpoints").iterdir())],
        "optimizer": torch.load(last / "optimizer.pt", weights_only=True),
        "state": json.loads((last / "state.json").read_text()),
        "history": history,
        "training": json.loads((run / "training.json").read_text()),
        "scores": json.loads((run / "scores.json").read_text()),
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
    }
    for file in (*last.glob("*.safetensors"), *(run / "model").glob("*.safetensors")):
        found[str(file.relative_to(run))] = load_file(file)
    return found


def unlike(one: Any, two: Any, path: str = "") -> list[str]:
    """Return where two results differ in a bit; times are left out."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted((one.keys() | two.keys()) - _TIMES, key=str)
        return [line for key in keys for line in unlike(one.get(key), two.get(key), f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [line for n, pair in enumerate(zip(one, two, strict=True)) for line in unlike(*pair, f"{path}/{n}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    return [] if type(one) is type(two) and one == two else [f"{path}: {str(one)[:80]} and {str(two)[:80]}"]
