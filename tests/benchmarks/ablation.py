"""Speed of leave-one-out ablation with shared computation, compared with one gated forward pass per head.

    python -m tests.benchmarks.ablation            measures: two minutes on two idle cores
    python -m tests.benchmarks.ablation --write    keeps the results, and updates the table of the guide

Random rows, as short as SST-2's sentences and long ones; all-MiniLM-L6-v2 (6 layers of 12 heads, width 384), all
weights or LoRA. The check which savings fit costs the same for any number of rows; it is timed separately, and the
ratio does not include it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import datasets
import numpy as np
from accelerate import Accelerator

from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split
from finetune.heads.ablation import ablation, sample_savings
from finetune.heads.gated_forward import GatedRows
from finetune.models.pretrained import load_tokenizer, quiet_libraries
from tests.benchmarks.comparison import markdown
from tests.benchmarks.contender import MODEL, build
from tests.benchmarks.contender_settings import Contender
from tests.benchmarks.rounds import Measurement, Record, measure_rounds, run_benchmark, spread

NAME = "ablation"
T = TypeVar("T")
Case = tuple[int, int, int, int]  # rows, minimum and maximum number of words, batch size
CASES: dict[str, Case] = {"short": (16, 8, 30, 8), "long": (4, 100, 128, 4)}


def sample(lora: bool, case: Case) -> GatedRows:
    """Return rows of random words; the batch size applies to the slow way only."""
    rows, min_words, max_words, batch_size = case
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


def compare(inputs: GatedRows) -> dict[str, float]:
    """Return the seconds of the check and of both ways, and their largest difference."""
    check, _ = timed(lambda: sample_savings(inputs))
    fast, one = timed(lambda: ablation(inputs))
    naive, other = timed(lambda: ablation(inputs, fast=False))
    difference = float(np.abs(one.without - other.without).max())
    return {"check": check, "fast": fast - check, "naive": naive, "difference": difference}


def measure() -> Record:
    """Measure all cases in interleaved rounds."""
    quiet_libraries()
    datasets.disable_progress_bars()
    contenders: dict[str, Callable[[], Measurement]] = {
        f"{name}, {'LoRA' if lora else 'full'}": partial(compare, sample(lora, case))
        for name, case in CASES.items()
        for lora in (False, True)
    }
    return measure_rounds(NAME, contenders, {"rows, words and batch": CASES})


def table(record: Record) -> str:
    """Return the seconds of both ways and their ratio."""
    rows = [["rows, weights", "check, s", "fast, s", "one pass per head, s", "ratio"]]
    for name in record.rounds[0]:
        seconds = [record.values(name, key) for key in ("check", "fast", "naive")]
        ratios = [naive / fast for _, fast, naive in zip(*seconds, strict=True)]
        rows.append([name, *map(spread, seconds), spread(ratios)])
    return markdown(rows)


if __name__ == "__main__":
    run_benchmark(NAME, measure, table)
