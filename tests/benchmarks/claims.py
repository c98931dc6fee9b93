"""Which published statements about attention heads hold here? Measures each, and writes the guide "Claims".

    python -m tests.benchmarks.claims --data DATA [--runs RUNS] [--seeds 0-2] [--only PATTERN]
    python -m tests.benchmarks.claims --table | --write

DATA has a folder per task (sst2, trec, banking77): train, validation and test.parquet, and labels.json. The models are
trained with the default recipe into RUNS (by default runs/claims), unless they are there. Each measurement is one line
of the log; finished ones are skipped, so the benchmark can be interrupted, resumed, and started several times at once.
To measure a part again, delete its lines from the log. PATTERN is a regular expression for "DATA SEED PART", such as
"trec 0 curve". --write keeps the lines in tests/benchmarks/results/claims.json and updates the guide.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from finetune.models.pretrained import quiet_libraries
from finetune.runs.json_files import read_json
from finetune.signals import Interrupted
from tests.benchmarks.cells import Cell, Line, ResultsLog, parse_seeds, work
from tests.benchmarks.claims_figures import Measurements
from tests.benchmarks.claims_measure import (
    CURVES,
    ITERATIVE,
    RANKINGS,
    Orders,
    accuracy_without,
    curve,
    loaded,
    named,
    run_folder,
    single_heads,
)
from tests.benchmarks.claims_page import keep, verdict_table, write_guide
from tests.benchmarks.claims_retrain import KINDS, retrained, train_small_classifier
from tests.benchmarks.comparison import print_table
from tests.benchmarks.heads import train
from tests.benchmarks.train_cell import MINILM, Timer
from tests.support import ROOT

TASKS = ("trec", "sst2", "banking77")
SMALL_HEADS = (1, 16)
FORTY_PERCENT = 0.4
LOG = Path("runs/claims/claims.jsonl")


def cells(seeds: Sequence[int]) -> list[Cell]:
    """Return all measurements, those of the first seeds first and the longest ones last."""
    parts = ["model", *(f"rank {name}" for name in RANKINGS), "forty_percent", *(f"curve {name}" for name in CURVES)]
    rankings = [Cell(task, "all", seed, part) for seed in seeds for task in TASKS for part in parts]
    single = [Cell(task, "all", seed, "single_heads") for seed in seeds for task in TASKS]
    small = [Cell(task, "all", seed, f"small {heads}") for seed in seeds for task in TASKS for heads in SMALL_HEADS]
    retraining = [Cell(task, "all", seed, f"retrain {kind}") for seed in seeds for kind in KINDS for task in TASKS]
    return [*rankings, *single, *retraining, *small]


@dataclass(frozen=True)
class Runner:
    """Runs the measurements."""

    data: Path
    runs: Path
    log: ResultsLog

    def run(self, cell: Cell) -> Line | None:
        """Return the line of a measurement; None if it needs the order of a ranking that is not finished."""
        timer, (part, _, name) = Timer(), cell.variant.partition(" ")
        order = self.order_for(cell, part, name)
        if order is None:
            return None
        result = self.measure(cell, part, name, order)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"data": cell.data, "rows": cell.rows, "seed": cell.seed, "variant": cell.variant, "metric": "accuracy"}
        return line | {"cpu_seconds": timer.seconds(), "date": date, "commit": commit()} | result

    def order_for(self, cell: Cell, part: str, name: str) -> list[int] | None:
        """Return the order that a measurement needs, [] if none, None if it is not measured yet."""
        if part in ("model", "rank", "small", "single_heads") or (name == "random" and part == "curve"):
            return []
        orders: Orders = {}
        for line in self.log.finished().values():
            if (line["data"], line["seed"]) == (cell.data, cell.seed):
                orders |= line.get("orders", {})
        return orders.get(name if part == "curve" else ITERATIVE)

    def measure(self, cell: Cell, part: str, name: str, order: list[int]) -> dict[str, Any]:
        """Return the values of a measurement."""
        if part == "small":
            return train_small_classifier(self.data, cell.data, cell.seed, int(name))
        folder = run_folder(self.runs, cell.data, cell.seed)
        if part == "model":
            return self.model(folder)
        run = loaded(folder)
        if part == "rank":
            return {"orders": RANKINGS[name](run)}
        if part == "curve":
            return curve(run, order or None)
        if part == "single_heads":
            return single_heads(run)
        if part == "forty_percent":
            return accuracy_without(run, order, FORTY_PERCENT)
        width = run.sample("train", 1).sites[0].num_heads
        loaded.cache_clear()  # the training below replaces the accelerator
        return retrained(run, folder / "recipe.yaml", name, named(order, width))

    def model(self, folder: Path) -> dict[str, Any]:
        """Train a model unless it is there, and return its test accuracy."""
        self.runs.mkdir(parents=True, exist_ok=True)
        train(self.data, folder, MINILM)
        test = read_json(folder / "scores.json", dict[str, Any])["test"]
        return {"score": test["metrics"]["accuracy"]["value"], "rows_scored": test["rows"]}


@cache
def commit() -> str:
    """Return the commit of the project that measures."""
    return subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="folder of the trained models")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--only", default="", help="a regular expression, such as 'trec 0 retrain' or 'curve'")
    parser.add_argument("--results", type=Path, default=LOG, help="the log")
    parser.add_argument("--table", action="store_true", help="only print the verdicts")
    parser.add_argument("--write", action="store_true", help="only keep the results and update the guide")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    log = ResultsLog(args.results)
    if args.write:
        keep(list(log.finished().values()))
        write_guide()
        return
    if args.table:
        print_table(verdict_table(Measurements(list(log.finished().values()))), width=200)
        return
    if args.data is None:
        raise SystemExit("--data is missing")
    quiet_libraries()
    every = cells(parse_seeds(args.seeds))
    chosen = [cell for cell in every if re.search(args.only, f"{cell.data} {cell.seed} {cell.variant}")]
    work(chosen, log, Runner(args.data, args.runs, log).run)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from None
