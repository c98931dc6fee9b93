"""Speed of leave-one-out ablation with shared computation, compared with one gated forward pass per head.

    python -m tests.benchmarks.ablation

Random rows, as short as SST-2's sentences and long ones; all-MiniLM-L6-v2 (6 layers of 12 heads, width 384), all
weights or LoRA. Both ways are interleaved in one run. The table shows medians over the rounds in seconds, and the
median of the ratios of the rounds. The check which savings fit costs the same for any number of rows; it is timed
separately, and the ratio does not include it.
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

from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split
from finetune.heads.ablation import ablation, sample_savings
from finetune.heads.gated_forward import GatedRows
from finetune.models.pretrained import load_tokenizer, quiet_libraries
from tests.benchmarks.contender import MODEL, Contender, build

ROUNDS = 3
T = TypeVar("T")
CASES = {"short": (32, 8, 30, 8), "long": (8, 100, 128, 4)}  # rows, minimum and maximum number of words, batch size


def sample(lora: bool, rows: int, min_words: int, max_words: int, batch_size: int) -> GatedRows:
    """Return rows of random words; the batch size applies to the slow way only."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "of", "film", "plot", "good", "bad", "dull", "bright", "funny", "slow", "and", "never"]
    texts = [" ".join(rng.choice(words, length)) for length in rng.integers(min_words, max_words, rows)]
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "random words")
    split = encode_split(raw, np.arange(rows) % 2, load_tokenizer(MODEL), ["sentence"], 128)
    return GatedRows(
        build(["no", "yes"], Contender("ours", lora, "no")),
        split,
        "random",
        np.arange(rows),
        batch_size,
        Accelerator(cpu=True),
    )


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> None:
    """Measure all cases and print the table."""
    quiet_libraries()
    datasets.disable_progress_bars()
    table = Table("rows", "weights", "tokens per row", "check", "fast", "naive", "naive / fast", "largest difference")
    for name, case in CASES.items():
        for lora in (False, True):
            inputs = sample(lora, *case)
            times, differences = [], []
            for _ in range(ROUNDS):
                check, _ = timed(lambda: sample_savings(inputs))  # noqa: B023  (called at once)
                fast, one = timed(lambda: ablation(inputs))  # noqa: B023
                naive, other = timed(lambda: ablation(inputs, fast=False))  # noqa: B023
                times.append((check, fast - check, naive))
                differences.append(float(np.abs(one.without - other.without).max()))
            cells = [statistics.median(pair[side] for pair in times) for side in range(3)]
            ratio = statistics.median(naive / fast for _, fast, naive in times)
            table.add_row(
                name,
                "LoRA" if lora else "full",
                f"{inputs.split.lengths.mean():.0f}",
                *(f"{cell:.2f}" for cell in cells),
                f"{ratio:.2f}",
                f"{max(differences):.0e}",
            )
    Console().print(table)
    print(f"{torch.get_num_threads()} threads, median of {ROUNDS} interleaved rounds; fast does not include the check")


if __name__ == "__main__":
    main()
