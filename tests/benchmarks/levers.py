"""What each speedup of training gives: the speed with all of them, over the speed with one turned off.

python -m tests.benchmarks.levers            measures: 5 minutes on two idle cores
python -m tests.benchmarks.levers --write    keeps the results, and updates the table of the guide
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from torch.nn import functional as F

from finetune.data.sampler import plan_epoch
from finetune.models import cpu_kernels
from tests.benchmarks.comparison import markdown
from tests.benchmarks.contender_settings import Contender
from tests.benchmarks.machine import has_bf16, machine
from tests.benchmarks.rounds import Record, measure_rounds, run_benchmark, spread

NAME, ROWS, ALL = "levers", 256, "all"
Off = Callable[[], AbstractContextManager[Any]]


def without_kernel(function: object) -> Off:
    """Return what lets a function of PyTorch use its own kernel."""
    table: Any = cpu_kernels._KERNELS
    return lambda: patch.dict(table, {function: lambda *args, **kwargs: None})


def shuffled(*args: Any, **options: Any) -> Any:
    """Return the steps of an epoch in random order, whatever the recipe says."""
    return plan_epoch(*args, **options | {"strategy": "random"})


def unchanged(*args: Any) -> AbstractContextManager[None]:
    """Return a context that changes nothing."""
    return nullcontext()


# Speedups by name, each with what turns it off.
LEVERS: Mapping[str, Off] = {
    ALL: nullcontext,
    "batches of similar lengths": lambda: patch("finetune.training.build.plan_epoch", shuffled),
    "dropout masks": without_kernel(F.dropout),
    "attention": without_kernel(F.scaled_dot_product_attention),
    "float32 products through oneDNN": without_kernel(F.linear),
    "embeddings of used words only": lambda: patch("finetune.training.build.make_embedding_subset", return_value=None),
    "frozen weights cast once": lambda: patch("finetune.models.speedups.frozen_weights_cast", unchanged),
    "freed memory kept": lambda: patch("finetune.models.cpu_kernels.keep_freed_memory"),
}  # fmt: skip
ONLY_LORA, ONLY_FLOAT32 = ("frozen weights cast once",), ("float32 products through oneDNN",)


def contenders(kind: str) -> dict[str, Contender]:
    """Return ours with all speedups, and with each turned off that has an effect, by weights and lever."""
    precision = "bf16" if has_bf16(kind) else "no"
    found = {}
    for lora in (False, True):
        every = Contender("ours", lora, precision, ROWS, epochs=2, warm_up=1)
        for lever in LEVERS:
            if lever in ONLY_FLOAT32 and precision != "no":
                continue
            if lever in ONLY_LORA and (precision == "no" or not lora):
                continue
            if lora and lever not in (ALL, *ONLY_LORA, *ONLY_FLOAT32):
                continue  # the same kernels as with all weights
            found[f"{'LoRA' if lora else 'full'}, {lever}"] = replace(every, off=lever)
    if len([name for name in found if name.startswith("LoRA")]) == 1:
        del found[f"LoRA, {ALL}"]
    return found


def table(record: Record) -> str:
    """Return how many times as fast and as large training is with each lever as without it."""
    rows = [["", "speed with it over without", "peak memory with it over without"]]
    for name in record.rounds[0]:
        weights, _, lever = name.partition(", ")
        if lever != ALL:
            every = f"{weights}, {ALL}"
            rows.append(
                [name, spread(record.ratios(every, name, "train")), spread(record.ratios(every, name, "memory"))]
            )
    speeds = [
        f"{name.partition(',')[0]} {statistics.median(record.values(name, 'train')):,.0f} rows per second"
        for name in record.rounds[0]
        if name.endswith(ALL)
    ]
    return f"{record.settings['precision']}; with all: {', '.join(speeds)}.\n\n{markdown(rows)}"


def measure() -> Record:
    """Measure all contenders in interleaved rounds."""
    kind = machine()["kind"]
    settings = {"rows": ROWS, "precision": "bf16" if has_bf16(kind) else "float32"}
    return measure_rounds(NAME, {name: one.run for name, one in contenders(kind).items()}, settings)


if __name__ == "__main__":
    run_benchmark(NAME, measure, table)
