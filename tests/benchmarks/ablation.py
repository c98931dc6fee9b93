"""How much faster leave-one-out is with what heads share computed once, against a gated forward pass a head.

    python -m tests.benchmarks.ablation

Random rows, short as SST-2's sentences and long, all-MiniLM-L6-v2 (6 layers of 12 heads, width 384), all weights or
LoRA; both ways in turns in one run. Medians over the rounds, in seconds, and the median of the rounds' ratios.
The trial of the savings costs the same for a large sample; it is timed by itself, and the ratio is told without it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from finetune.data.loading import RawSplit
from finetune.data.tokenization import encode_split
from finetune.heads.ablation import ablation, sample_savings
from finetune.heads.gated_forward import GatedRows
from finetune.models.pretrained import load_tokenizer, quiet_libraries
from tests.benchmarks.speed import MODEL, build

ROUNDS = 3
T = TypeVar("T")
CASES = {"short": (32, 8, 30, 8), "long": (8, 100, 128, 4)}  # rows, fewest and most words, rows of a batch


def sample(lora: bool, rows: int, fewest: int, most: int, batch_size: int) -> GatedRows:
    """Return a sample of random words; its batch size is that of the slow way, the fast one has its own."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "of", "film", "plot", "good", "bad", "dull", "bright", "funny", "slow", "and", "never"]
    texts = [" ".join(rng.choice(words, length)) for length in rng.integers(fewest, most, rows)]
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "random words")
    split = encode_split(raw, np.arange(rows) % 2, load_tokenizer(MODEL), ["sentence"], 128)
    return GatedRows(build(["no", "yes"], lora), split, "random", np.arange(rows), batch_size, Accelerator(cpu=True))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that some work takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> None:
    """Measure all cases and print the table."""
    quiet_libraries()
    datasets.disable_progress_bars()
    table = Table("rows", "weights", "tokens a row", "trial", "fast", "naive", "naive / fast", "largest difference")
    for name, case in CASES.items():
        for lora in (False, True):
            put = sample(lora, *case)
            times, differences = [], []
            for _ in range(ROUNDS):
                trial, _ = timed(lambda: sample_savings(put))  # noqa: B023  (called at once)
                fast, one = timed(lambda: ablation(put))  # noqa: B023
                naive, other = timed(lambda: ablation(put, fast=False))  # noqa: B023
                times.append((trial, fast - trial, naive))
                differences.append(float(np.abs(one.without - other.without).max()))
            cells = [statistics.median(pair[side] for pair in times) for side in range(3)]
            ratio = statistics.median(naive / fast for _, fast, naive in times)
            table.add_row(
                name,
                "LoRA" if lora else "full",
                f"{put.split.lengths.mean():.0f}",
                *(f"{cell:.2f}" for cell in cells),
                f"{ratio:.2f}",
                f"{max(differences):.0e}",
            )
    Console().print(table)
    print(f"{torch.get_num_threads()} threads, median of {ROUNDS} rounds in turns; fast is without the trial")


if __name__ == "__main__":
    main()
