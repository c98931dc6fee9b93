"""Kill runs, resume them, and compare every bit (`make soak`); test_soak.py is a short version.

At writes: a process, forked after the imports, kills itself at a write to the run folder, usually during a save; the
write is random (in the test), or every write is tried. At times: real runs of one and two processes are killed at a
random time after their first checkpoint.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import BertModel

from tests.conftest import save_tiny_bert
from tests.support.killing import AUTO, KILLED, bits, differences, in_fork, in_processes, write_recipe


def at_random_writes(folder: Path, bert: Path, points: int, draw: random.Random) -> int:
    """Kill forks at random writes, with full fine-tuning and with LoRA; return how many were killed."""

    def stops(writes: int) -> list[list[int]]:
        # In 30 % of the runs, the resumed run is killed too.
        twice = [draw.random() < 0.3 for _ in range(points // 2)]
        return [[draw.randint(1, writes) for _ in range(1 + again)] for again in twice]

    return at_writes(folder, bert, stops)


def at_every_write(folder: Path, bert: Path, *_: object) -> int:
    """Kill a fork at every write, with full fine-tuning and with LoRA; return how many were killed."""
    return at_writes(folder, bert, lambda writes: [[stop] for stop in range(1, writes + 1)])


def at_writes(folder: Path, bert: Path, plan: Callable[[int], list[list[int]]]) -> int:
    """Kill forks at the writes that `plan` chooses, given their number; return how many were killed."""
    killed = 0
    for lora in (False, True):
        subfolder = folder / ("lora" if lora else "full")
        recipe = write_recipe(subfolder, bert, lora=lora)
        reference = subfolder / "reference"
        code, writes = in_fork(["train", str(recipe), f"output_dir={reference}", AUTO], reference)
        assert (code, writes > 40) == (0, True), reference.with_suffix(".log").read_text()
        expected = bits(reference)
        for number, stops in enumerate(plan(writes)):
            run = subfolder / f"run{number}"
            command = ["train", str(recipe), f"output_dir={run}", AUTO]
            for stop in stops:
                code, _ = in_fork(command, run, stop)
                killed += code == KILLED
            code, _ = in_fork(command, run)
            report_resumed(f"{subfolder.name}, killed at write {stops} of {writes}", code, expected, run)
    return killed


def at_random_times(folder: Path, bert: Path, points: int, draw: random.Random) -> int:
    """Kill runs of one and two processes, full and LoRA, at random times; return how many were killed."""
    killed = 0
    for processes in (1, 2):
        for lora in (False, True):
            subfolder = folder / f"{'lora' if lora else 'full'}-{processes}"
            recipe = write_recipe(subfolder, bert, lora=lora, processes=processes, epochs=40)
            reference = subfolder / "reference"
            code, took = in_processes(["train", str(recipe), f"output_dir={reference}"], reference, processes)
            assert code == 0, reference.with_suffix(".log").read_text()
            expected = bits(reference)
            for number in range(-(-points // 4)):
                run = subfolder / f"run{number}"
                command = ["train", str(recipe), f"output_dir={run}", AUTO]
                stop = took * draw.uniform(0.0, 0.7)
                killed += in_processes(command, run, processes, stop)[0] == KILLED
                code, _ = in_processes(command, run, processes)
                report_resumed(
                    f"{subfolder.name}, killed {stop:.2f} of {took:.2f} s after the first checkpoint",
                    code,
                    expected,
                    run,
                )
    return killed


def report_resumed(description: str, code: int, expected: dict[str, object], run: Path) -> None:
    """Print the result of a resumed run; raise AssertionError if it is not bit-identical."""
    log = run.with_suffix(".log").read_text()
    assert code == 0, f"{description}: exit code {code}\n{log}"
    found_differences = differences(expected, bits(run))
    resumed = log.rpartition("Resuming from")[2].partition(" at step ")[2].partition(".\n")[0] or "step 0"
    print(
        f"{description}; resumed from {' '.join(resumed.split())}: {found_differences or 'the same bits'}", flush=True
    )
    assert not found_differences, description


KINDS = {"random-times": at_random_times, "random-writes": at_random_writes, "every-write": at_every_write}


def main() -> None:
    """Print the seed and the result of every kill."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--seed", type=int, default=None, help="seed of the random points (default: a random seed)")
    parser.add_argument(
        "--at", choices=KINDS, default="random-times", help="where to kill; every-write ignores --points"
    )
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        bert = save_tiny_bert(Path(scratch) / "bert", BertModel)
        killed = KINDS[args.at](Path(scratch), bert, args.points, random.Random(seed))
    print(f"{killed} processes killed; all resumed runs are bit-identical")
    sys.exit(0 if killed else "nothing was killed: every point is after the end of the run")


if __name__ == "__main__":
    main()
