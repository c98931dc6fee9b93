"""Tokens per second that reach a model which computes nothing: plan an epoch, gather the rows, pad them, move them.

    python -m tests.benchmarks.input_pipeline           # five rounds, two minutes on a machine with no other load
    python -m tests.benchmarks.input_pipeline --write   # also keep them and update the performance guide

The rows are random token ids with the lengths of SST-2, in a file that is mapped into memory, in batches of 32 rows of
similar length. The other side is what transformers' Trainer does: a DataLoader of torch over the rows, with
DataCollatorWithPadding. The copy to an accelerator, which this machine may lack, is a copy within the CPU's memory.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from finetune.data.batching import PREFETCHED, PackedBatch, load_batches, prefetch
from finetune.data.sampler import plan_epoch
from finetune.data.tokenization import EncodedSplit
from finetune.models.pretrained import load_tokenizer, quiet_libraries
from tests.benchmarks.contender import BATCH, MODEL, sentence_lengths
from tests.benchmarks.large_data import PeakMemory
from tests.benchmarks.rounds import Measurement, Record, keep, measure_rounds, spread, write_tables

NAME = "input-pipeline"
CPU = torch.device("cpu")
ROWS = 500_000
_ROWS_PER_CHUNK = 1000  # as `datasets` writes them
_SPECIAL_TOKENS = 2
COLLATOR, GATHERED, ON_ONE_CORE, ON_TWO_CORES = "DataLoader", "gathered", "thread, one core", "thread, two cores"
ROWS_OF_TABLE = {
    COLLATOR: "DataLoader and DataCollatorWithPadding, one core",
    GATHERED: "finetune on a CPU, one core",
    ON_ONE_CORE: "finetune for an accelerator: a thread, packing and copying, one core",
    ON_TWO_CORES: "finetune for an accelerator: a thread, packing and copying, two cores",
}


def write_rows(file: Path, rows: int) -> EncodedSplit:
    """Write tokenized rows to a file and return them as a split."""
    rng = np.random.default_rng(0)
    lengths = sentence_lengths(rng, rows) + _SPECIAL_TOKENS
    labels = rng.integers(0, 2, rows)
    columns = {"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.int8()), "labels": pa.int64()}
    with pa.ipc.new_stream(str(file), pa.schema(columns)) as stream:
        for start in range(0, rows, _ROWS_PER_CHUNK):
            chunk = slice(start, start + _ROWS_PER_CHUNK)
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths[chunk])]).astype(np.int32))
            ids = rng.integers(1000, 30_000, offsets[-1].as_py(), dtype=np.int32)
            lists = [
                pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, np.zeros(len(ids), np.int8))
            ]
            stream.write_batch(pa.record_batch([*lists, pa.array(labels[chunk])], names=list(columns)))
    dataset = datasets.Dataset.from_file(str(file))
    assert dataset.data.column("input_ids").num_chunks == -(-rows // _ROWS_PER_CHUNK)
    return EncodedSplit(dataset, labels, lengths, 0.0, dataset, "generated", np.arange(rows), true_lengths=lengths)


def planned(split: EncodedSplit) -> list[np.ndarray]:
    """Return the batches of an epoch as training plans them."""
    steps = plan_epoch(split.lengths, batch_size=BATCH, accumulation=1, strategy="group_by_length", seed=0, epoch=0)
    return [rows for step in steps for rows in step]


def collated(split: EncodedSplit, tokenizer: Any) -> Iterator[torch.Tensor]:
    """Yield the token ids of the batches as Trainer makes them."""
    batches = (rows.tolist() for rows in planned(split))
    loader: DataLoader[Any] = DataLoader(
        split.rows, batch_sampler=batches, collate_fn=DataCollatorWithPadding(tokenizer)
    )
    return (batch["input_ids"] for batch in loader)


def gathered(split: EncodedSplit, tokenizer: Any) -> Iterator[torch.Tensor]:
    """Yield the token ids of the batches as finetune makes them for a CPU."""
    return (batch.inputs["input_ids"] for batch in load_batches(split, planned(split), tokenizer, device=CPU))


def copied(split: EncodedSplit, tokenizer: Any) -> Iterator[torch.Tensor]:
    """Yield the token ids of the batches as finetune makes them for an accelerator, which the CPU's memory replaces."""
    loaded = load_batches(split, planned(split), tokenizer, device=CPU)
    for packed in prefetch((PackedBatch.of(batch, pinned=False) for batch in loaded), PREFETCHED):
        yield replace(packed, block=packed.block.clone()).to(CPU).inputs["input_ids"]


@contextmanager
def cores(number: int) -> Iterator[None]:
    """Run this process on this many cores inside the context."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


def measure(
    make: Callable[[EncodedSplit, Any], Iterator[torch.Tensor]], number: int, split: EncodedSplit, tokenizer: Any
) -> Measurement:
    """Return real tokens per second, by the clock and by processor time, and the growth of the private memory in MB."""
    with cores(number), PeakMemory() as memory:
        started, used, padded = time.perf_counter(), time.process_time(), 0
        for ids in make(split, tokenizer):
            padded += ids.numel()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    tokens = int(split.lengths.sum())
    assert tokens <= padded < 1.1 * tokens, "every row was loaded, with little padding"
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu_seconds,
        "memory_mb": memory.peak - memory.before,
    }


def table(record: Record) -> str:
    """Return the table of the guide."""
    lines = [
        "| real tokens per second | by the clock, millions | per second of processor time, millions | memory, MB |",
        "| --- | --- | --- | --- |",
    ]
    for contender, title in ROWS_OF_TABLE.items():
        clock, cpu = (
            spread([value / 1e6 for value in record.values(contender, key)])
            for key in ("tokens_per_second", "tokens_per_cpu_second")
        )
        lines.append(f"| {title} | {clock} | {cpu} | {spread(record.values(contender, 'memory_mb'), 0)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and with `--write` keep the rounds and update the guide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--write", action="store_true", help="keep the rounds and update the performance guide")
    options = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        split, tokenizer = write_rows(Path(folder, "rows.arrow"), options.rows), load_tokenizer(MODEL)
        measured = {
            COLLATOR: (collated, 1),
            GATHERED: (gathered, 1),
            ON_ONE_CORE: (copied, 1),
            ON_TWO_CORES: (copied, 2),
        }
        contenders = {
            name: partial(measure, make, number, split, tokenizer) for name, (make, number) in measured.items()
        }
        record = measure_rounds(NAME, contenders, {"rows": options.rows, "batch": BATCH})
    print(table(record))
    if options.write:
        keep(record)
        write_tables(NAME, table)


if __name__ == "__main__":
    main()
