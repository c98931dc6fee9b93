"""Training time by sentence length, batch size, layers and rows, to predict the time of a run.

    python -m tests.benchmarks.growth

One value is changed at a time, starting from rows of 32 tokens, batches of 32, and 6 layers of width 384 (MiniLM). The
effect of the number of rows is measured on complete runs with reading and tokenization, each in its own process, so
that their peak memory can be compared.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.table import Table

from finetune.data.rows import RawSplit
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.pretrained import quiet_libraries
from finetune.models.speedups import sped_up
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan
from tests.benchmarks.contender import Contender, build, encode, peak_memory, read, sentences

BASE = {"tokens": 32, "batch": 32, "layers": 6}
VARIED = {"tokens": (8, 16, 32, 64, 128), "batch": (4, 8, 16, 32, 64, 128), "layers": (2, 4, 6, 12)}
ROWS = (2_000, 20_000)
WARM_UP, STEPS = 3, 8
RESULT = Path("runs/bench-growth.json")


def with_layers(classifier: Classifier, layers: int) -> Classifier:
    """Return the classifier with this number of layers, which are copies of its own."""
    encoder = classifier.base.base_model.encoder
    original = list(encoder.layer)
    encoder.layer = torch.nn.ModuleList(copy.deepcopy(original[index % len(original)]) for index in range(layers))
    classifier.base.config.num_hidden_layers = layers
    return classifier


def step_time(tokens: int, batch: int, layers: int, precision: str) -> float:
    """Return the median seconds of an optimizer step on rows of exactly this number of tokens."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    steps = WARM_UP + STEPS
    texts = sentences(np.random.default_rng(0), np.full(steps * batch, tokens - 2))
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts, "label": [row % 2 for row in range(len(texts))]}), "")
    split, names = encode(raw)
    classifier = with_layers(build(names, Contender("ours", False, precision)), layers)
    plan = Plan(batch, 1, steps, 1, steps, 0, 500, None, None, None)
    trainer = build_trainer(
        classifier, split, plan, Hyperparameters(TrainingSection(learning_rate=2e-5), seed=0), accelerator
    )
    seconds = []
    with sped_up(classifier, accelerator):
        for micro_batches, rows in trainer.epoch_steps():
            started = time.perf_counter()
            trainer.optimizer_step(micro_batches, rows)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def whole_run(rows: int) -> dict[str, float]:
    """Return seconds and peak memory of reading, tokenizing, training and scoring, with 2 layers."""
    quiet_libraries()
    datasets.disable_progress_bars()
    keep_freed_memory()
    accelerator = Accelerator(cpu=True)
    classifier = with_layers(build(["0", "1"], Contender("ours", False, "no")), 2)
    with tempfile.TemporaryDirectory() as folder:
        read(None, rows).rows.to_parquet(f"{folder}/rows.parquet")
        started = time.perf_counter()
        split, _ = encode(read(f"{folder}/rows.parquet", rows))
        steps = -(-rows // 32)
        plan = Plan(32, 1, steps, 1, steps, 0, 500, None, None, None)
        trainer = build_trainer(
            classifier, split, plan, Hyperparameters(TrainingSection(learning_rate=2e-5), seed=0), accelerator
        )
        trainer.fit(Path(folder))
        predict(classifier, split, batch_size=64, accelerator=accelerator)
        return {"seconds": time.perf_counter() - started, "memory": peak_memory()}


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    quiet_libraries()
    datasets.disable_progress_bars()
    keep_freed_memory()
    console, record = Console(highlight=False), {}
    for name, values in VARIED.items():
        table = Table(name, "float32: ms per row", "rows/s", "bf16: ms per row", "rows/s")
        for value in values:
            setting = BASE | {name: value}
            times = [step_time(**setting, precision=precision) / setting["batch"] for precision in ("no", "bf16")]
            record[f"{name} {value}"] = times
            table.add_row(str(value), *(cell for t in times for cell in (f"{1000 * t:.2f}", f"{1 / t:.0f}")))
        console.print(table)
    table = Table("rows", "ms per row, reading to scoring", "peak MB")
    for rows in ROWS:
        command = [sys.executable, "-m", "tests.benchmarks.growth", str(rows)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        record[f"rows {rows}"] = found
        table.add_row(f"{rows:,}", f"{1000 * found['seconds'] / rows:.3f}", f"{found['memory']:.0f}")
    console.print(table)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(whole_run(int(sys.argv[1]))))
    else:
        main()
