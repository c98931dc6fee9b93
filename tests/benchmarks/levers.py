"""What each speedup of training gives: the speed with all of them, over the speed with one turned off.

python -m tests.benchmarks.levers            measures: 5 minutes on two idle cores
python -m tests.benchmarks.levers --write    keeps the results, and updates the table of the guide
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

from torch.nn import functional as F

from finetune.data.sampler import plan_epoch
from finetune.models import cpu_kernels
from tests.benchmarks.comparison import markdown
from tests.benchmarks.contender_settings import PRECISIONS, Contender
from tests.benchmarks.machine import has_bf16, machine
from tests.benchmarks.rounds import Record, measure_rounds, run_benchmark, spread

NAME, ROWS, ALL = "levers", 256, "all"
FULL, LORA = "full", "LoRA"
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
    """Return ours with all speedups, and with each turned off that has an effect: "LoRA, bf16, freed memory kept".

    What does not depend on the trained weights or on the precision is measured once.
    """
    best = "bf16" if has_bf16(kind) else "no"
    everywhere = [lever for lever in LEVERS if lever not in (ALL, *ONLY_LORA, *ONLY_FLOAT32)]
    measured = {(FULL, best): everywhere}
    measured[FULL, "no"] = [*measured.get((FULL, "no"), []), *ONLY_FLOAT32]
    measured[LORA, best] = list(ONLY_FLOAT32 if best == "no" else ONLY_LORA)
    return {
        f"{weights}, {PRECISIONS[precision]}, {lever}": Contender(
            "ours", weights == LORA, precision, ROWS, epochs=2, warm_up=1, off=lever
        )
        for (weights, precision), levers in measured.items()
        for lever in (ALL, *levers)
    }


def table(record: Record) -> str:
    """Return how many times as fast and as large training is with each lever as without it."""
    rows = [["", "speed with it over without", "peak memory with it over without"]]
    speeds = []
    for name in record.rounds[0]:
        trained, _, lever = name.rpartition(", ")
        if lever == ALL:
            speeds.append(f"{trained} {statistics.median(record.values(name, 'train')):,.0f}")
        else:
            ratios = [spread(record.ratios(f"{trained}, {ALL}", name, key)) for key in ("train", "memory")]
            rows.append([name, *ratios])
    return f"Rows per second with all: {'; '.join(speeds)}.\n\n{markdown(rows)}"


def measure() -> Record:
    """Measure all contenders in interleaved rounds."""
    everyone = contenders(machine()["kind"])
    return measure_rounds(NAME, {name: one.run for name, one in everyone.items()}, {"rows": ROWS})


if __name__ == "__main__":
    run_benchmark(NAME, measure, table)
