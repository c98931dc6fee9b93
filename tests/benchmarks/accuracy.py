"""Accuracy of ours in bf16 and of Trainer, over three seeds, with the same rows, epochs and learning rates.

python -m tests.benchmarks.accuracy TRAIN.parquet TEST.parquet
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.contender_settings import Contender

SEEDS, ROWS, EPOCHS = (0, 1, 2), 3000, 2
SIDES = (("ours", "bf16"), ("grouped", "bf16"), ("Trainer", "no"))
RATES = {False: 1e-4, True: 1e-3}
RESULT = Path("runs/bench-accuracy.json")


def main(train: str, test: str) -> None:
    """Train each side with each seed, print the accuracies, write them as JSON after each run."""
    accuracies: dict[str, list[float]] = {}
    RESULT.parent.mkdir(exist_ok=True)
    for seed in SEEDS:
        for lora, rate in RATES.items():
            for side, precision in SIDES:
                contender = Contender(side, lora, precision, ROWS, EPOCHS, rate, seed, train, test)
                name = f"{'LoRA' if lora else 'full'}, {side}, {precision}"
                accuracies.setdefault(name, []).append(contender.run()["accuracy"])
                RESULT.write_text(json.dumps(accuracies, indent=1) + "\n")
    table = Table("", *(f"seed {seed}" for seed in SEEDS), "mean")
    for name, values in accuracies.items():
        table.add_row(name, *(f"{value:.4f}" for value in values), f"{statistics.mean(values):.4f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:3])
