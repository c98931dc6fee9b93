"""Size and speed of report.html by number of rows: python -m tests.benchmarks.report_page RUN.

RUN is any finished run of single-label classification: its predictions and scores are replaced by generated ones in a
copy. The texts are random words with the frequencies of Zipf's law, so that they compress like English (gzip: to about
40 %). Writing is measured in a process of its own; the page is opened in headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.runs.json_files import write_json
from finetune.runs.results import ClassScores, MetricValue, SplitScores
from finetune.runs.run_folder import RunFolder
from tests.support.browser import chromium

NAMES = ["world", "sports", "business", "science"]
RESULTS = Path(__file__).parent / "results" / "report-page.json"
# What a reader does, as changes of the state, in this order.
CHANGES: list[dict[str, str | None]] = [
    {"label": "sports"},
    {"label": None, "outcome": "wrong"},
    {"outcome": "right", "confidence": "50-90", "length": "20-120"},
    {"outcome": None, "confidence": None, "length": None, "text": r"\bba"},
    {"text": r"(ko|mi)\w*s\b"},
    {"text": None},
    {"view": "labels"},
    {"view": None, "sort": "confidence"},
]
TIME_CHANGE = """(changes) => new Promise((resolve) => {
    const start = performance.now();
    const finish = () => resolve(performance.now() - start);
    if (Object.keys(changes).some((key) => sliceKeys.includes(key))) sliceListeners.push(finish);
    setState(changes);
    if (!Object.keys(changes).some((key) => sliceKeys.includes(key))) finish();
})"""


def generated_texts(rows: int, random: np.random.Generator) -> list[str]:
    """Return texts of 3 to 60 words, on average about 14, from a vocabulary of 30,000."""
    syllables = [f"{consonant}{vowel}" for consonant in "bcdfghklmnprstvw" for vowel in "aeiou"] + ["n", "s", "r", "t"]
    lengths = random.integers(1, 5, size=30_000)
    words = np.array(["".join(random.choice(syllables, length)) for length in lengths])
    counts = np.clip(random.lognormal(2.5, 0.5, rows), 3, 60).astype(int)
    ranks = np.minimum(random.zipf(1.15, counts.sum()), len(words)) - 1
    parts = np.split(words[ranks], counts.cumsum()[:-1])
    return [" ".join(part) for part in parts]


def generated_predictions(rows: int) -> pa.Table:
    """Return predictions of which about 91 % are right."""
    random = np.random.default_rng(0)
    labels = random.integers(len(NAMES), size=rows)
    logits = random.normal(size=(rows, len(NAMES))) * 1.5 + 4.2 * np.eye(len(NAMES))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = pa.array(NAMES)
    return pa.table(
        {
            "split": pa.repeat("test", rows), "row": pa.array(np.arange(1, rows + 1)),
            "text": pa.array(generated_texts(rows, random)), "label": names.take(pa.array(labels)),
            "predicted": names.take(pa.array(probabilities.argmax(axis=1))),
            "probabilities": pa.FixedSizeListArray.from_arrays(
                pa.array(probabilities.astype(np.float32).ravel()), len(NAMES)
            ).cast(pa.list_(pa.float32())),
            "loss": pa.array(-np.log(probabilities[np.arange(rows), labels]).astype(np.float32)),
        }
    )  # fmt: skip


def prepare(run: Path, folder: Path, rows: int) -> RunFolder:
    """Return a copy of a run with generated predictions."""
    copy = RunFolder(folder / "run")
    shutil.copytree(run, copy.path, ignore=shutil.ignore_patterns("checkpoints", "model", "pruned", "onnx*"))
    copy.baselines.unlink(missing_ok=True)
    table = generated_predictions(rows)
    pq.write_table(table, copy.predictions)
    right = np.mean(np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist()))
    value = MetricValue(float(right))
    classes = [ClassScores(name, value, value, value, rows // len(NAMES)) for name in NAMES]
    write_json(copy.scores, {"test": SplitScores(rows, 0.3, {"accuracy": value}, classes)})
    return copy


def measure_writing(copy: RunFolder) -> dict[str, float]:
    """Return the seconds and the peak memory of `finetune report`."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "finetune", "report", str(copy.path)]) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"finetune report ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
        "page_mb": round(copy.report.stat().st_size / 1e6, 2),
    }


def measure_page(path: Path) -> dict[str, Any]:
    """Return how long the page takes to appear, to be ready, and to show a changed slice."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        ready = page.evaluate("performance.now()")
        slices = {json.dumps(change): round(page.evaluate(TIME_CHANGE, change)) for change in CHANGES}
        texts, count = page.evaluate("[rows.texts, rows.count]")
        heap = page.evaluate("performance.memory.usedJSHeapSize")
    return {
        "first_paint_ms": round(paint), "ready_ms": round(ready), "change_ms": slices, "heap_mb": round(heap / 1e6),
        "texts": {key: texts[key] for key in ("embedded", "first", "firstEmbedded")}, "rows": count,
    }  # fmt: skip


def main() -> None:
    """Measure every number of rows and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="copy the pages into this folder")
    args = parser.parse_args()
    results = []
    for rows in args.rows:
        with TemporaryDirectory() as folder:
            copy = prepare(args.run, Path(folder), rows)
            result = {"rows": rows, **measure_writing(copy), **measure_page(copy.report)}
            if args.keep:
                shutil.copy(copy.report, args.keep / f"report-{rows}.html")
                shutil.copy(copy.predictions, args.keep / f"predictions-{rows}.parquet")
        print(json.dumps(result, indent=2))
        results.append(result)
    args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
