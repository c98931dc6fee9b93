"""Accuracy of finetune and of Trainer's best setting over three seeds: same rows, epochs and learning rates.

    python -m tests.benchmarks.accuracy --train TRAIN.parquet --test TEST.parquet
    python -m tests.benchmarks.accuracy --write    keeps the results, and updates the table of the guide

Nothing is timed, so that the machine may have other load. Paired differences are those of the same seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

from tests.benchmarks.comparison import markdown
from tests.benchmarks.contender_settings import Contender
from tests.benchmarks.machine import machine
from tests.benchmarks.rounds import Record, keep_finished, measure_rounds, write_tables
from tests.benchmarks.speed import FULL, LORA, contenders

NAME, ROUNDS = "accuracy", 1  # a round has all seeds, and nothing is timed
SEEDS, ROWS, EPOCHS = (0, 1, 2), 1000, 2
RATES = {FULL: 1e-4, LORA: 1e-3}


def by_seed(kind: str, train: str, test: str) -> dict[str, Contender]:
    """Return the contenders of the speed benchmark but Trainer's defaults, with each seed."""
    return {
        f"{name}, seed {seed}": replace(
            one, rows=ROWS, epochs=EPOCHS, warm_up=0, learning_rate=RATES[name.partition(",")[0]], seed=seed,
            file=train, test=test,
        )
        for seed in SEEDS
        for name, one in contenders(kind).items()
        if not name.endswith("default")
    }  # fmt: skip


def table(record: Record) -> str:
    """Return the accuracy of each contender: mean, each seed, and the mean difference to Trainer with each seed."""
    (measured,) = record.rounds
    accuracies: dict[str, list[float]] = {}
    for name, values in measured.items():
        accuracies.setdefault(name.rpartition(", seed ")[0], []).append(values["accuracy"])
    rows = [["", "mean", "per seed", "minus Trainer, best"]]
    for name, values in accuracies.items():
        best = accuracies[f"{name.partition(',')[0]}, Trainer, best"]
        differences = [one - other for one, other in zip(values, best, strict=True)]
        text = "" if values is best else f"{statistics.fmean(differences):+.4f} ({', '.join(map(signed, differences))})"
        rows.append([name, f"{statistics.fmean(values):.4f}", ", ".join(f"{value:.3f}" for value in values), text])
    settings = record.settings
    return f"{settings['rows']:,} training rows, {settings['epochs']} epochs.\n\n{markdown(rows)}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all contenders and print the table, or keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="parquet file with the columns sentence and label")
    parser.add_argument("--test", help="the same, with the rows to score")
    parser.add_argument("--write", action="store_true", help="keep the finished results, and update the guide")
    args = parser.parse_args(arguments)
    if args.write:
        keep_finished(NAME, ROUNDS)
        write_tables(NAME, table)
        return
    if not (args.train and args.test):
        parser.error("--train and --test are missing")
    everyone = by_seed(machine()["kind"], args.train, args.test)
    settings = {"rows": ROWS, "epochs": EPOCHS, "learning rates": RATES, "contenders": list(everyone)}
    runs = {name: one.run for name, one in everyone.items()}
    print(table(measure_rounds(NAME, runs, settings, rounds=ROUNDS)))


if __name__ == "__main__":
    main()
