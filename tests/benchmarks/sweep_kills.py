"""Kill a sweep of real runs at random points, continue it, and compare its trials with those of a sweep left alone.

    python -m tests.benchmarks.sweep_kills --kills 10 --work /tmp/kills

The trials and their validation scores must be identical; times are not compared. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from finetune.runs.sweep_results import SweepFolder, SweepTrial, read_sweep

SWEEP: dict[str, Any] = {
    "recipe": "recipe:toy_from_scratch",
    "overrides": {
        "head_importance": None,
        "evaluation.baselines": None,
        "training.num_threads": 1,
        "training.use_cpu": True,
        "checkpoint.save_strategy": "epoch",
    },
    "sampler": "tpe",
    "sampler_seed": 1,
    "trials": 14,
    "pruner": "median",
    "space": {
        "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
        "model.config_overrides.num_attention_heads": [1, 2, 4],
    },
}
_COSTS = ("train_seconds",)  # measured times, which differ between two runs


def start(sweep: Path, output: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the sweep as a user does."""
    command = [sys.executable, "-m", "finetune", "sweep", str(sweep), "--output", str(output)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def compared(trial: SweepTrial) -> dict[str, Any]:
    """Return what must not depend on whether the sweep was killed."""
    metrics = {name: value for name, value in trial.metrics.items() if name not in _COSTS}
    return {
        "number": trial.number, "state": trial.state, "parameters": trial.parameters, "values": trial.values,
        "metrics": metrics, "intermediate": trial.intermediate,
    }  # fmt: skip


def newest_change(folder: Path) -> int:
    """Return the time of the last change to a file in a folder, in nanoseconds."""
    times = [0]
    for path in folder.rglob("*"):
        with suppress(OSError):  # a temporary file that is gone
            times.append(path.stat().st_mtime_ns)
    return max(times)


def kill_at_random_points(sweep: Path, output: Path, log: Path, kills: int, seed: int) -> list[str]:
    """Run the sweep with SIGKILL at random points, then to its end; return what was being done at each kill."""
    draw, points = random.Random(seed), []
    while len(points) < kills:
        process = start(sweep, output, log)
        begun = time.monotonic()
        while process.poll() is None and not SweepFolder(output).trials.is_dir():
            time.sleep(0.01)
        # Imports take most of the first seconds, so the time counts from the first change in this start.
        before = newest_change(output)
        while process.poll() is None and newest_change(output) == before:
            time.sleep(0.01)
        delay = draw.uniform(0.0, 6.0)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished = len(list(SweepFolder(output).trials.glob("*.json")))
            seconds = time.monotonic() - begun
            points.append(f"{seconds:.1f} s after the start, {delay:.2f} s into the work, {finished} finished")
            continue
        if process.returncode == 0:
            break  # it ended before the kill
        raise SystemExit(f"the sweep ended with {process.returncode}; see {log}")
    process = start(sweep, output, log)
    if process.wait() != 0:
        raise SystemExit(f"the sweep ended with {process.returncode}; see {log}")
    return points


def main() -> None:
    """Run both sweeps and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    sweep = args.work / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(SWEEP))
    alone, killed = args.work / "alone", args.work / "killed"
    if start(sweep, alone, args.work / "alone.log").wait() != 0:
        raise SystemExit(f"the sweep ended with an error; see {args.work / 'alone.log'}")
    points = kill_at_random_points(sweep, killed, args.work / "killed.log", args.kills, args.seed)
    expected, actual = ([compared(trial) for trial in read_sweep(folder).trials] for folder in (alone, killed))
    states = [trial["state"] for trial in expected]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    print(json.dumps({"kills": points, "trials": counts, "identical": expected == actual}, indent=1))
    if expected != actual:
        raise SystemExit("the trials differ")


if __name__ == "__main__":
    main()
