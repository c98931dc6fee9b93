"""How fast training and scoring are, against what people would use instead: transformers' Trainer.

    make bench                                         generated rows of the lengths of SST-2
    python -m tests.benchmarks.speed rows.parquet      own rows with the columns sentence and label

Contenders run one after the other, each in its own process, round after round, so that a machine whose speed drifts
slows all. Ratios are medians of the ratios within a round. The tables are printed and written as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.contender import Contender

ROUNDS = 5
RESULT = Path("runs/bench.json")
# Ours, theirs, and the ratio to be reached; the last two show what is won in one precision alone.
GOALS = {
    "train": [("bf16", "Trainer", "no", 3.5), ("bf16", "grouped", "bf16", 1.5), ("no", "Trainer", "no", None)],
    "score": [("bf16", "Trainer", "no", 4.0), ("bf16", "grouped", "bf16", None), ("no", "Trainer", "no", None)],
}
PRECISIONS = {"no": "float32", "bf16": "bf16"}
Round = dict[tuple[str, bool, str], dict[str, float]]


def contenders(file: str | None) -> list[Contender]:
    """Return all that run in a round."""
    sides = [("ours", "no"), ("Trainer", "no"), ("ours", "bf16"), ("grouped", "bf16")]
    return [Contender(side, lora, precision, file=file) for lora in (False, True) for side, precision in sides]


def contests(rounds: list[Round]) -> list[dict[str, Any]]:
    """Return each contest's speeds and ratio."""
    found = []
    for lora in (False, True):
        for work, pairs in GOALS.items():
            for precision, side, other, goal in pairs:
                own = [each["ours", lora, precision] for each in rounds]
                their = [each[side, lora, other] for each in rounds]
                found.append(
                    {
                        "work": f"{'LoRA' if lora else 'full'}, {work}",
                        "ours": f"{PRECISIONS[precision]}",
                        "Trainer": f"{PRECISIONS[other]}{', by length' if side == 'grouped' else ', defaults'}",
                        "rows a second, ours": statistics.median(each[work] for each in own),
                        "rows a second, Trainer": statistics.median(each[work] for each in their),
                        "ratio": statistics.median(a[work] / b[work] for a, b in zip(own, their, strict=True)),
                        "goal": goal,
                    }
                )
    return found


def main(file: str | None = None) -> None:
    """Measure all in turns, print the tables, write them as JSON."""
    everyone, rounds = contenders(file), []
    console = Console(highlight=False)
    for number in range(ROUNDS):
        rounds.append({(c.side, c.lora, c.precision): c.run() for c in everyone})
        console.print(f"round {number + 1} of {ROUNDS} done")
    found = contests(rounds)
    table = Table(*found[0])
    for contest in found:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell or "") for cell in contest.values()))
    console.print(table)
    use = Table("", "peak MB", "products alone, GFLOP/s", "share of them: asked for", "share of them: done")
    shares = {}
    for key in rounds[0]:
        name = f"{key[0]}, {'LoRA' if key[1] else 'full'}, {PRECISIONS[key[2]]}"
        columns = ("memory", "product_rate", "asked_share", "done_share")
        shares[name] = {column: statistics.median(each[key][column] for each in rounds) for column in columns}
        use.add_row(name, *(f"{value:.{0 if value > 2 else 2}f}" for value in shares[name].values()))
    console.print(use)
    RESULT.parent.mkdir(exist_ok=True)
    raw = [{" ".join(map(str, key)): value for key, value in each.items()} for each in rounds]
    record = {
        "rows": everyone[0].rows,
        "where": file or "generated rows",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "contests": found,
        "use": shares,
        "rounds": raw,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"{everyone[0].rows} rows ({file or 'generated rows'}), {ROUNDS} rounds; written to {RESULT}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
