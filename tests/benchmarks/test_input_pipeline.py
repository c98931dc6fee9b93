from __future__ import annotations

import os
from pathlib import Path

import torch

from finetune.models.pretrained import load_tokenizer
from tests.benchmarks.contender import MODEL
from tests.benchmarks.input_pipeline import ROWS_OF_TABLE, collated, copied, gathered, measure, table, write_rows
from tests.benchmarks.rounds import Record


def test_all_sides_load_the_same_batches(tmp_path: Path) -> None:
    split, tokenizer = write_rows(tmp_path / "rows.arrow", 1100), load_tokenizer(MODEL)
    expected, *others = (list(make(split, tokenizer)) for make in (collated, gathered, copied))
    assert len(expected) == -(-1100 // 32)
    for loaded in others:
        assert all(torch.equal(ids, same) for ids, same in zip(loaded, expected, strict=True))
    cores = os.sched_getaffinity(0)
    measured = measure(copied, 1, split, tokenizer)
    assert os.sched_getaffinity(0) == cores
    assert measured["tokens_per_cpu_second"] > 0
    lines = table(Record("input-pipeline", {}, {}, [dict.fromkeys(ROWS_OF_TABLE, measured)])).splitlines()
    assert len(lines) == 2 + len(ROWS_OF_TABLE)
