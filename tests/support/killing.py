"""Runs that are killed, resumed, and compared bit by bit with a run that was not killed."""

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
_TIMES = {"samples_per_second", "train_seconds", "eval_seconds", "logged_seconds", "seconds_per_epoch", "speed"}


def write_recipe(folder: Path, bert: Path, *, lora: bool, processes: int = 1, epochs: int = 3) -> Path:
    """Write a recipe with 13 rows in steps of four (the last has one row); it saves and logs at different steps."""
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
        "evaluation": {"metric_for_best_model": "loss", "bootstrap_samples": 100, "baselines": ["majority"]},
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
    """Return a list whose one element counts this process's writes in a folder; it kills itself at write `stop_at`."""
    count = [0]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (opened or event in _WRITES) and f"{folder}{os.sep}" in f"{arguments[0]}{os.sep}":
            count[0] += 1
            if count[0] == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    return count


def in_fork(arguments: list[str], folder: Path, stop_at: int = 0, number: int = signal.SIGKILL) -> tuple[int, int]:
    """Run a command in a forked process; return its exit code (-9 if it was killed) and its number of writes."""
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
    written = os.read(reading, 100)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(written or 0)


def in_processes(
    arguments: list[str], folder: Path, processes: int, kill_after: float | None = None
) -> tuple[int, float]:
    """Run a command as a user starts it; return its exit code, and the seconds since its first checkpoint.

    All its processes are killed `kill_after` seconds after the first checkpoint; the time before is mostly imports.
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
    """Kill a process and all its children, because torchrun starts them in separate sessions."""
    for process in (psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def bits(run: Path) -> dict[str, Any]:
    """Return all results of a run that must not depend on whether it was killed; weights are tensors."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    results: dict[str, Any] = {
        "checkpoints": [path.name for path in sorted((run / "checkpoints").iterdir())],
        "optimizer": torch.load(last / "optimizer.pt", weights_only=True),
        "state": json.loads((last / "state.json").read_text()),
        "history": history,
        "training": json.loads((run / "training.json").read_text()),
        "scores": json.loads((run / "scores.json").read_text()),
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
    }
    for file in (*last.glob("*.safetensors"), *(run / "model").glob("*.safetensors")):
        results[str(file.relative_to(run))] = load_file(file)
    return results


def differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Return the paths at which two results differ; times are ignored."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted((one.keys() | two.keys()) - _TIMES, key=str)
        return [line for key in keys for line in differences(one.get(key), two.get(key), f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [line for n, pair in enumerate(zip(one, two, strict=True)) for line in differences(*pair, f"{path}/{n}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    return [] if type(one) is type(two) and one == two else [f"{path}: {str(one)[:80]} and {str(two)[:80]}"]
