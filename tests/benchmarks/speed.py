"""Speed of training and scoring, compared with transformers' Trainer.

    make bench                                         generated rows with the lengths of SST-2
    python -m tests.benchmarks.speed rows.parquet      your own rows, with the columns sentence and label

The contenders run one after another, each in its own process, for several rounds, so that a machine whose speed
drifts slows all of them. Ratios are medians of the ratios within a round. The tables are printed and written as JSON.
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
# Precision of ours; side and precision of Trainer; the ratio to reach. Those without a goal compare equal precisions.
GOALS = {
    "train": [("bf16", "Trainer", "no", 3.5), ("bf16", "grouped", "bf16", 1.5), ("no", "Trainer", "no", None)],
    "score": [("bf16", "Trainer", "no", 4.0), ("bf16", "grouped", "bf16", None), ("no", "Trainer", "no", None)],
}
PRECISIONS = {"no": "float32", "bf16": "bf16"}
Round = dict[tuple[str, bool, str], dict[str, float]]


def contenders(file: str | None) -> list[Contender]:
    """Return the contenders of a round."""
    sides = [("ours", "no"), ("Trainer", "no"), ("ours", "bf16"), ("grouped", "bf16")]
    return [Contender(side, lora, precision, file=file) for lora in (False, True) for side, precision in sides]


def comparisons(rounds: list[Round]) -> list[dict[str, Any]]:
    """Return the speeds and the ratio of each comparison."""
    results = []
    for lora in (False, True):
        for task, pairs in GOALS.items():
            for precision, side, other, goal in pairs:
                ours = [result["ours", lora, precision] for result in rounds]
                theirs = [result[side, lora, other] for result in rounds]
                results.append(
                    {
                        "task": f"{'LoRA' if lora else 'full'}, {task}",
                        "ours": f"{PRECISIONS[precision]}",
                        "Trainer": f"{PRECISIONS[other]}{', by length' if side == 'grouped' else ', defaults'}",
                        "rows/s, ours": statistics.median(result[task] for result in ours),
                        "rows/s, Trainer": statistics.median(result[task] for result in theirs),
                        "ratio": statistics.median(a[task] / b[task] for a, b in zip(ours, theirs, strict=True)),
                        "goal": goal,
                    }
                )
    return results


def main(file: str | None = None) -> None:
    """Measure all contenders in interleaved rounds, print the tables, and write them as JSON."""
    all_contenders, rounds = contenders(file), []
    console = Console(highlight=False)
    for number in range(ROUNDS):
        rounds.append({(c.side, c.lora, c.precision): c.run() for c in all_contenders})
        console.print(f"round {number + 1} of {ROUNDS} done")
    results = comparisons(rounds)
    table = Table(*results[0])
    for result in results:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell or "") for cell in result.values()))
    console.print(table)
    use = Table("", "peak MB", "matrix products alone, GFLOP/s", "model FLOPs utilization", "computed FLOPs / alone")
    shares = {}
    for key in rounds[0]:
        name = f"{key[0]}, {'LoRA' if key[1] else 'full'}, {PRECISIONS[key[2]]}"
        columns = ("memory", "product_rate", "model_flops_utilization", "computed_flops_share")
        shares[name] = {column: statistics.median(result[key][column] for result in rounds) for column in columns}
        use.add_row(name, *(f"{value:.{0 if value > 2 else 2}f}" for value in shares[name].values()))
    console.print(use)
    RESULT.parent.mkdir(exist_ok=True)
    raw = [{" ".join(map(str, key)): value for key, value in result.items()} for result in rounds]
    record = {
        "rows": all_contenders[0].rows,
        "source": file or "generated rows",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "comparisons": results,
        "use": shares,
        "rounds": raw,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"{all_contenders[0].rows} rows ({file or 'generated rows'}), {ROUNDS} rounds; written to {RESULT}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
