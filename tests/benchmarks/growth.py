"""Training time by sentence length, batch size, layers and rows, to predict the time of a run.

    python -m tests.benchmarks.growth            measures: 4 minutes on two idle cores
    python -m tests.benchmarks.growth --write    keeps the results, and updates the table of the guide

One value is changed at a time, starting from rows of 32 tokens, batches of 32, and 6 layers of width 384 (MiniLM). The
effect of the number of rows is measured on complete runs with reading and tokenization, each in its own process, so
that their peak memory can be compared.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetune.data.rows import RawSplit
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.pretrained import quiet_libraries
from finetune.models.speedups import sped_up
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan
from tests.benchmarks.comparison import markdown
from tests.benchmarks.contender import build, encode, peak_memory, read, sentences
from tests.benchmarks.contender_settings import PRECISIONS, Contender
from tests.benchmarks.machine import has_bf16, machine
from tests.benchmarks.rounds import Measurement, Record, measure_rounds, run_benchmark, run_module, spread

BASE = {"tokens": 32, "batch": 32, "layers": 6}
VARIED = {"tokens": (8, 32, 128), "batch": (4, 32, 128), "layers": (2, 6, 12)}
TITLES = {"tokens": "tokens per row", "batch": "rows per batch", "layers": "layers"}
ROWS = (500, 5_000)
WARM_UP, STEPS = 1, 3
NAME = "growth"


def with_layers(classifier: Classifier, layers: int) -> Classifier:
    """Return the classifier with this number of layers, which are copies of its own."""
    encoder = classifier.base.base_model.encoder
    original = list(encoder.layer)
    encoder.layer = torch.nn.ModuleList(copy.deepcopy(original[index % len(original)]) for index in range(layers))
    classifier.base.config.num_hidden_layers = layers
    return classifier


def step_speed(setting: Mapping[str, int], precision: str) -> dict[str, float]:
    """Return the rows per second of training on rows of exactly a number of tokens, by the median step."""
    tokens, batch, layers = (setting[name] for name in BASE)
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
    return {"rows per second": batch / statistics.median(seconds[WARM_UP:])}


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


def contenders(kind: str) -> dict[str, Callable[[], Measurement]]:
    """Return the settings by name, such as "bf16, tokens 32"; the base setting has one name for all that is varied."""
    keep_freed_memory()
    found: dict[str, Callable[[], Measurement]] = {}
    for precision in ("no", "bf16") if has_bf16(kind) else ("no",):
        for name, values in VARIED.items():
            for value in values:
                setting = BASE | {name: value}
                found[title(setting, precision)] = partial(step_speed, setting, precision)
    return found | {f"{rows} rows": partial(run_module, "tests.benchmarks.growth", rows) for rows in ROWS}


def title(setting: Mapping[str, int], precision: str) -> str:
    """Return the name of a setting."""
    return f"{PRECISIONS[precision]}, {', '.join(f'{name} {value}' for name, value in setting.items())}"


def table(record: Record) -> str:
    """Return the tables of one kind of processor: rows per second, and the time of complete runs."""
    parts = []
    precisions = ["no", "bf16"] if has_bf16(record.kind) else ["no"]
    for name, values in VARIED.items():
        rows = [[TITLES[name], *map(str, values)]]
        for precision in precisions:
            names = [title(BASE | {name: value}, precision) for value in values]
            rows.append([PRECISIONS[precision], *(spread(record.values(one, "rows per second"), 0) for one in names)])
        parts.append(markdown(rows))
    few, many = (f"{rows} rows" for rows in ROWS)
    seconds = [spread(record.values(name, "seconds"), 1) for name in (few, many)]
    memory = [spread(record.values(name, "memory"), 0) for name in (few, many)]
    parts.append(
        f"From reading to scoring with two layers, float32, {ROWS[1] // ROWS[0]} times the rows take "
        f"{spread(record.ratios(many, few, 'seconds'), 1)} times as long: {seconds[0]} s for {ROWS[0]:,} rows and "
        f"{seconds[1]} s for {ROWS[1]:,}, with {memory[0]} and {memory[1]} MB of peak memory."
    )
    return "\n\n".join(parts)


def measure() -> Record:
    """Measure all settings in interleaved rounds."""
    quiet_libraries()
    datasets.disable_progress_bars()
    return measure_rounds(NAME, contenders(machine()["kind"]), {"steps": STEPS, "rows": ROWS})


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].isdigit():
        print(json.dumps(whole_run(int(sys.argv[1]))))
    else:
        run_benchmark(NAME, measure, table)
