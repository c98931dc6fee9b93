"""Rows per second of processor time in training with and without padding, for both orders of rows.

    python -m tests.benchmarks.padding_free           # five rounds, five minutes on a machine with no other load
    python -m tests.benchmarks.padding_free --write   # also keep them and update the performance guide

MiniLM with all weights trained, on generated sentences with the lengths of SST-2, in batches of 32 rows. Each variant
does the same number of optimizer steps on the same batches in each round.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator

from finetune.models.building import Labels, pretrained_classifier
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.pretrained import load_tokenizer, quiet_libraries
from finetune.models.speedups import sped_up
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan
from tests.benchmarks.contender import BATCH, MODEL, encode, read
from tests.benchmarks.rounds import Measurement, Record, keep, measure_rounds, run_module, spread, write_tables

NAME = "padding-free"
STEPS = 20
ORDERS = {"random": "random", "group_by_length": "grouped by length"}
PRECISIONS = {"no": "float32", "bf16": "bf16"}


def measure(precision: str, order: str, padding_free: bool, steps: int = STEPS) -> Measurement:
    """Return rows per second of processor time in `steps` steps on the first batches of an epoch."""
    torch.set_num_threads(1)
    quiet_libraries()
    keep_freed_memory()
    split, _ = encode(read(None, BATCH * 100))
    torch.manual_seed(0)
    labels = Labels(("no", "yes"), "single_label_classification")
    classifier = pretrained_classifier(MODEL, load_tokenizer(MODEL), labels, max_length=128)
    training = TrainingSection(
        learning_rate=1e-4, mixed_precision=precision, train_sampling_strategy=order, padding_free=padding_free
    )
    plan = Plan(BATCH, 1, 100, 1, 100, 0, 100, None, None, None)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    trainer = build_trainer(classifier, split, plan, Hyperparameters(training, seed=0), accelerator)
    with sped_up(classifier, accelerator):
        first, *batches = islice(trainer.epoch_steps(), steps + 1)
        trainer.optimizer_step(*first)  # it allocates memory
        started = time.process_time()
        for micro_batches, rows in batches:
            trainer.optimizer_step(micro_batches, rows)
        seconds = time.process_time() - started
    return {"rows_per_second": BATCH * steps / seconds}


def table(record: Record) -> str:
    """Return the table of the performance guide."""
    lines = ["| rows per second of processor time | padded | without padding | ratio |", "| --- | --- | --- | --- |"]
    for precision, precision_name in PRECISIONS.items():
        for order, order_name in ORDERS.items():
            padded, packed = (f"{precision} {order} {padding_free}" for padding_free in (False, True))
            values = [spread(record.values(name, "rows_per_second"), 1) for name in (padded, packed)]
            ratio = spread(record.ratios(packed, padded, "rows_per_second"))
            lines.append(f"| {precision_name}, {order_name} | {' | '.join(values)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all variants, each in a process of its own, and write the results if requested."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):  # as one of those processes
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the results, and update the performance guide")
    options = parser.parse_args()
    variants: dict[str, dict[str, Any]] = {
        f"{precision} {order} {padding_free}": {"precision": precision, "order": order, "padding_free": padding_free}
        for precision in PRECISIONS
        for order in ORDERS
        for padding_free in (False, True)
    }
    contenders = {name: partial(run_module, "tests.benchmarks.padding_free", one) for name, one in variants.items()}
    record = measure_rounds(NAME, contenders, {"steps": STEPS, "batch": BATCH})
    print(table(record))
    if options.write:
        keep(record)
        write_tables(NAME, table)


if __name__ == "__main__":
    main()
