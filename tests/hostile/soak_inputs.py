"""Run the commands with thousands of hostile inputs (`make soak`); test_hostile_inputs.py is a short version.

Prints the number of inputs of each kind, and each fault once, with an input that causes it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from finetune.models.pretrained import quiet_libraries
from tests.hostile.commands import Inputs
from tests.hostile.data import data_files
from tests.hostile.recipes import overrides, recipe_texts, settings_of_a_run
from tests.hostile.runs import damages, files_of, tiny_run

# Percentage of inputs of each kind: a check takes milliseconds, the others train, score or analyze.
SHARES = {"recipes": 43, "overrides": 40, "settings": 3, "data files": 8, "damaged runs": 6}


def try_inputs(kind: str, count: int, seed: int, strategy: Any, fault_of: Callable[[Any], str]) -> int:
    """Try `count` inputs of a kind, print the results, and return the number of different faults."""
    faults: Counter[str] = Counter()
    number, started, slowest = 0, time.monotonic(), (0.0, "")

    @hypothesis.seed(seed)
    @settings(
        max_examples=count, database=None, derandomize=False, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def each(drawn: Any) -> None:
        nonlocal number, slowest
        number, before = number + 1, time.monotonic()
        fault = fault_of(drawn)
        slowest = max(slowest, (time.monotonic() - before, f"{drawn!r}"[:200]))
        if fault:
            name = "\n".join(fault.splitlines()[-1:])[:150]
            faults[name] += 1
            if faults[name] == 1:
                print(f"FAULT among {kind}: {drawn!r}\n{fault}\n", flush=True)

    each()
    spent = time.monotonic() - started
    print(f"{kind}: {number} inputs in {spent:.0f} s, {len(faults)} different faults", flush=True)
    print(f"  the slowest, {slowest[0]:.1f} s: {slowest[1]}")
    for name, times in faults.most_common():
        print(f"  {times} times: {name}")
    totals[kind] = number
    return len(faults)


totals: dict[str, int] = {}


def main() -> None:
    """Try all kinds; the exit code is 1 if there is a fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=5500)
    parser.add_argument("--seed", type=int, default=None, help="default: a random seed")
    parser.add_argument("--kinds", nargs="*", choices=SHARES, default=list(SHARES))
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    quiet_libraries()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch) / "cache"
        inputs = Inputs(Path(scratch) / "work", tiny_run(Path(scratch) / "made"))
        kinds = {
            "recipes": (recipe_texts(), inputs.check),
            "overrides": (overrides(), inputs.override),
            "settings": (settings_of_a_run(), inputs.settings),
            "data files": (data_files(), inputs.data),
            "damaged runs": (damages(files_of(inputs.run)), inputs.damaged),
        }
        faults = 0
        for kind in args.kinds:
            inputs.clear()
            inputs.codes.clear()
            faults += try_inputs(kind, args.inputs * SHARES[kind] // 100, seed, *kinds[kind])
            print(f"  exit codes: {dict(inputs.codes)}")
    each = ", ".join(f"{count} {kind}" for kind, count in totals.items())
    print(f"{sum(totals.values())} inputs: {each}; {faults} faults")
    sys.exit(1 if faults or not all(totals.values()) else 0)


if __name__ == "__main__":
    main()
