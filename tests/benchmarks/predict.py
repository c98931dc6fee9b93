"""Memory and speed of `finetune predict` by number of rows and format: python -m tests.benchmarks.predict RUN.

Each size is one process. Peak memory is that of the process; its time without the time of one row is divided by the
number of rows. Memory that grows with the number of rows is a defect.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "mat",
    "floor",
    "film",
    "sat",
    "on",
    "is",
    "not",
    "bright",
    "slow",
    "quick",
    "dull",
    "warm",
]
_BLOCK = 10_000


def blocks(rows: int) -> Iterator[pa.RecordBatch]:
    """Yield rows of 4 to 16 random words, with a number and a score."""
    draw = random.Random(0)
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 16))) for _ in range(count)]
        columns = [pa.array(range(start, start + count)), pa.array(texts), pa.array([draw.random() for _ in texts])]
        yield pa.RecordBatch.from_arrays(columns, names=["id", "sentence", "score"])


def write_rows(path: Path, rows: int) -> None:
    """Write a csv or parquet file of generated rows."""
    first = next(blocks(1))
    writer = pq.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter
    with writer(path, first.schema) as file:
        for block in blocks(rows):
            file.write_batch(block)


def measure(run: Path, file: Path, output: Path) -> tuple[float, float]:
    """Return the seconds and the peak memory in MB of one process that labels a file."""
    command = [sys.executable, "-m", "finetune", "predict", run, file, "--output", output]
    start = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"finetune predict {run} {file} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


def main() -> None:
    """Measure every size and format, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", default=["csv", "parquet"])
    args = parser.parse_args()
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
    print("format      rows   seconds  rows/s  peak memory", flush=True)
    with TemporaryDirectory() as folder:
        for kind in args.formats:
            file, output = Path(folder, f"rows.{kind}"), Path(folder, f"labeled.{kind}")
            startup = 0.0
            for rows in (1, *args.rows):
                write_rows(file, rows)
                seconds, memory = measure(args.run, file, output)
                startup = startup or seconds
                rate = f"{rows / max(seconds - startup, 1e-9):7,.0f}" if rows > 1 else "      -"
                print(f"{kind:8}{rows:9,} {seconds:8.1f} {rate} {memory:8,.0f} MB", flush=True)
    print(f"load average after: {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
