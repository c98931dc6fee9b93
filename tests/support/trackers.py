"""Reading what each tracker library has stored, and the values that it should have stored."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.runs.run_folder import RunFolder

Series = dict[str, dict[int, float]]  # name -> step -> value


def expected_values(folder: RunFolder) -> Series:
    """Return all values that a tracker receives of a run, from the files of the run."""
    values: Series = {}

    def add(name: str, step: int, value: float | None) -> None:
        if value is not None:
            values.setdefault(name, {})[step] = value

    for entry in map(json.loads, folder.history.read_text().splitlines()):
        for name in entry.keys() - {"step"}:
            training = name in ("loss", "learning_rate", "grad_norm", "samples_per_second")
            add(f"train/{name}" if training else name.replace("eval_", "eval/"), entry["step"], entry[name])
    training_result = json.loads(folder.training.read_text())
    last = training_result["steps"]
    for name, value in {**training_result, **training_result["speed"]}.items():
        if isinstance(value, int | float):
            add(f"final/{name}", last, value)
    for split, scores in json.loads(folder.scores.read_text()).items():
        add(f"final/{split}_loss", last, scores["loss"])
        for metric, value in scores["metrics"].items():
            add(f"final/{split}_{metric}", last, value["value"])
            add(f"final/{split}_{metric}_low", last, value["low"])
            add(f"final/{split}_{metric}_high", last, value["high"])
    return values


def add_value(series: Series, name: str, step: int, value: float) -> None:
    """Add a value that was read; a value that is stored twice must be the same."""
    assert series.setdefault(name, {}).setdefault(step, value) == value


def wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run: a log in the format of LevelDB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, record = file.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768  # in this block; a record's header of 7 bytes is never divided
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""
