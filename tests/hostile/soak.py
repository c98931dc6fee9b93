"""Kill runs, go on, and compare every bit: `make soak`, and in a short form a test.

At writes: a fork, made after the imports, kills itself at a write of the run folder, which falls into a save more often
than not; at random ones (the test), or at each in turn. At times: real processes, one and two, are killed at a random
moment after their first checkpoint.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import BertModel

from tests.conftest import _save_bert
from tests.support.killing import AUTO, KILLED, bits, in_fork, in_processes, unlike, write_recipe


def at_random_writes(folder: Path, bert: Path, points: int, draw: random.Random) -> int:
    """Kill forks at random writes, full and LoRA in turn; return how many were killed."""

    def stops(writes: int) -> list[list[int]]:
        # Now and then the run that goes on is killed too.
        twice = [draw.random() < 0.3 for _ in range(points // 2)]
        return [[draw.randint(1, writes) for _ in range(1 + again)] for again in twice]

    return at_writes(folder, bert, stops)


def at_every_write(folder: Path, bert: Path, *_: object) -> int:
    """Kill a fork at each of its writes, full and LoRA; return how many were killed."""
    return at_writes(folder, bert, lambda writes: [[stop] for stop in range(1, writes + 1)])


def at_writes(folder: Path, bert: Path, plan: Callable[[int], list[list[int]]]) -> int:
    """Kill forks at those writes that `plan` chooses from their number; return how many were killed."""
    killed = 0
    for lora in (False, True):
        place = folder / ("lora" if lora else "full")
        recipe = write_recipe(place, bert, lora=lora)
        whole = place / "whole"
        code, writes = in_fork(["train", str(recipe), f"output_dir={whole}", AUTO], whole)
        assert (code, writes > 40) == (0, True), whole.with_suffix(".log").read_text()
        expected = bits(whole)
        for number, stops in enumerate(plan(writes)):
            run = place / f"run{number}"
            command = ["train", str(recipe), f"output_dir={run}", AUTO]
            for stop in stops:
                code, _ = in_fork(command, run, stop)
                killed += code == KILLED
            code, _ = in_fork(command, run)
            report(f"{place.name}, killed at write {stops} of {writes}", code, expected, run)
    return killed


def at_random_times(folder: Path, bert: Path, points: int, draw: random.Random) -> int:
    """Kill real processes at random times, full and LoRA, one and two in turn; return how many were killed."""
    killed = 0
    for processes in (1, 2):
        for lora in (False, True):
            place = folder / f"{'lora' if lora else 'full'}-{processes}"
            recipe = write_recipe(place, bert, lora=lora, processes=processes, epochs=40)
            whole = place / "whole"
            code, took = in_processes(["train", str(recipe), f"output_dir={whole}"], whole, processes)
            assert code == 0, whole.with_suffix(".log").read_text()
            expected = bits(whole)
            for number in range(-(-points // 4)):
                run = place / f"run{number}"
                command = ["train", str(recipe), f"output_dir={run}", AUTO]
                stop = took * draw.uniform(0.0, 0.7)
                killed += in_processes(command, run, processes, stop)[0] == KILLED
                code, _ = in_processes(command, run, processes)
                report(
                    f"{place.name}, killed {stop:.2f} of {took:.2f} s after the first checkpoint", code, expected, run
                )
    return killed


def report(what: str, code: int, expected: dict[str, object], run: Path) -> None:
    """Say how a run that went on ended; AssertionError unless it is the same to the bit."""
    log = run.with_suffix(".log").read_text()
    assert code == 0, f"{what}: exit code {code}\n{log}"
    differ = unlike(expected, bits(run))
    went_on = log.rpartition("Resuming from")[2].partition(" at step ")[2].partition(".\n")[0] or "step 0"
    print(f"{what}; went on from {' '.join(went_on.split())}: {differ or 'the same bits'}", flush=True)
    assert not differ, what


KINDS = {"random-times": at_random_times, "random-writes": at_random_writes, "every-write": at_every_write}


def main() -> None:
    """Print the seed, and every point as it is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--seed", type=int, default=None, help="of the random points; none: another each time")
    parser.add_argument(
        "--at", choices=KINDS, default="random-times", help="where to kill; every-write heeds no points"
    )
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as aside:
        bert = _save_bert(Path(aside) / "bert", BertModel)
        killed = KINDS[asked.at](Path(aside), bert, asked.points, random.Random(seed))
    print(f"{killed} processes killed, all gone on with to the same bits")
    sys.exit(0 if killed else "nothing was killed: the points lie after the end")


if __name__ == "__main__":
    main()
