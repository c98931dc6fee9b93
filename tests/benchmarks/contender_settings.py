"""What a contender of the speed benchmarks trains, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.rounds import run_module

SIDES: dict[str, dict[str, Any]] = {  # arguments of Trainer
    "Trainer": {},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "compiled": {"train_sampling_strategy": "group_by_length", "torch_compile": True},
}
PRECISIONS = {"no": "float32", "bf16": "bf16", "int8": "int8"}
Measured = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """What one contender trains, and how.

    Attributes:
        side: ours, or one of SIDES: Trainer (with its defaults), grouped (with batches grouped by length), compiled
            (the same with torch_compile).
        precision: no, bf16 or int8.
        epochs, warm_up: all epochs, and those at the start that are not timed.
        file: parquet file of training rows (columns sentence, label); None: random words with the lengths of SST-2.
        test: parquet file with the rows to score; None: the training rows.
        use_cpu: False: use the GPU.
        off: a speedup of ours that is turned off, one of `levers.LEVERS`.
    """

    side: str
    lora: bool
    precision: str
    rows: int = 1920
    epochs: int = 1
    learning_rate: float = 2e-5
    seed: int = 0
    file: str | None = None
    test: str | None = None
    use_cpu: bool = True
    warm_up: int = 0
    off: str = "all"  # none is turned off

    def run(self) -> Measured:
        """Return the measurements, taken in a new process."""
        return run_module("tests.benchmarks.contender", asdict(self))
