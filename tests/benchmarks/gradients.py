"""Cost of the gradients of all heads, as a multiple of one plain scoring pass over the same rows.

    python -m tests.benchmarks.gradients

Random rows as short as SST-2's sentences, all-MiniLM-L6-v2, all weights or LoRA; medians of interleaved rounds.
"""

from __future__ import annotations

import datasets
from rich.console import Console
from rich.table import Table

from finetune.evaluation.prediction import predict
from finetune.heads.gated_forward import GatedRows
from finetune.heads.gradients import gradient, integrated_gradients
from finetune.models.pretrained import quiet_libraries
from tests.benchmarks.ablation import sample, timed

ROUNDS, STEPS = 3, 8


def multiples(rows: GatedRows) -> tuple[float, float, float]:
    """Return the median seconds of a scoring pass, and the cost of the two gradient methods as multiples of it."""

    def score() -> object:
        return predict(rows.classifier, rows.split, batch_size=rows.batch_size, accelerator=rows.accelerator)

    plain, single, path = [], [], []
    for _ in range(ROUNDS):
        seconds, _ = timed(score)
        plain.append(seconds)
        single.append(timed(lambda: gradient(rows))[0] / seconds)
        path.append(timed(lambda: integrated_gradients(rows, STEPS))[0] / seconds)
    middle = ROUNDS // 2
    return sorted(plain)[middle], sorted(single)[middle], sorted(path)[middle]


def main() -> None:
    """Measure both kinds of weights at three sizes, and print the table."""
    quiet_libraries()
    datasets.disable_progress_bars()
    table = Table("weights", "rows", "scoring pass, s", "gradient", f"integrated, {STEPS} steps", "per step")
    for lora in (False, True):
        for count in (32, 64, 128):
            seconds, single, path = multiples(sample(lora, count, 8, 30, 32))
            cells = (f"{seconds:.2f}", f"{single:.2f} x", f"{path:.2f} x", f"{path / STEPS:.2f} x")
            table.add_row("LoRA" if lora else "full", f"{count}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
