"""Speed of inference: transformers, finetune and ONNX on the same texts, in interleaved rounds.

    python -m tests.benchmarks.inference RUN [PRUNED] [--rounds N]

RUN is a finished run with test or validation rows in predictions.parquet, PRUNED a pruned model (default: RUN/pruned).
All contenders get the same texts, and the time includes tokenization. Ratios are within a round, so that other load on
the machine changes them less than the speeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments, pipeline

from finetune import load_classifier
from finetune.models.classifier import Classifier
from finetune.models.onnx_classifier import OnnxClassifier, load_onnx
from finetune.models.pretrained import quiet_libraries
from finetune.pipeline.export import export
from finetune.pipeline.export_rows import read_rows
from finetune.runs.run_folder import RunFolder

RESULT = Path("runs") / "bench-inference.json"
ROWS, FIXED_ROWS, LENGTHS, BATCH_SIZES, LATENCY_CALLS = 512, 64, (16, 64, 128), (1, 8, 32), 60
OURS, INT8, PIPELINE = "ours, float32", "ONNX int8", "pipeline(batch_size=32)"
GOALS = {OURS: 2.5, PIPELINE: 5.0}  # rows/s of int8 over these
Contender = Callable[[Sequence[str], int], object]  # texts and batch size -> anything


def contenders(run: Path, pruned: Path, folder: Path) -> dict[str, Contender]:
    """Return every contender by name; exported models are written to `folder`."""
    classifier = load_classifier(run)
    found: dict[str, Contender] = {
        "Trainer.predict": trainer_predict(load_classifier(run)),
        "pipeline, default": pipeline_of(load_classifier(run), batched=False),
        PIPELINE: pipeline_of(load_classifier(run), batched=True),
        OURS: lambda texts, size: classifier.logits([list(texts)], size),
    }
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        found["ours, bf16"] = in_bfloat16(classifier)
    float32, int8 = (exported(run, folder / name, int8=name == "int8") for name in ("float32", "int8"))
    one_thread = exported(run, folder / "int8", int8=True, threads=1)
    found["ONNX float32"] = logits_of(float32)
    found[INT8] = logits_of(int8)
    found["ONNX int8, file order"] = in_file_order(int8)
    found["ONNX int8, one thread"] = logits_of(one_thread)
    if pruned.is_dir():
        found["ONNX int8, pruned"] = logits_of(exported(pruned, folder / "pruned", int8=True))
    return found


def exported(source: Path, folder: Path, *, int8: bool, threads: int | None = None) -> OnnxClassifier:
    """Return the exported model, which is written first if the folder does not exist."""
    if not folder.exists():
        export(source, int8=int8, output=folder)
    with patched_environment({} if threads is None else {"OMP_NUM_THREADS": str(threads)}):
        return load_onnx(folder)


def patched_environment(changes: dict[str, str]) -> Any:
    """Return a context with these environment variables."""
    from unittest.mock import patch

    return patch.dict("os.environ", changes)


def logits_of(model: OnnxClassifier) -> Contender:
    """Return the exported model as a contender."""
    return lambda texts, size: model.logits([list(texts)], size)


def in_file_order(model: OnnxClassifier) -> Contender:
    """Return the exported model with batches in the order of the texts, as pipeline makes them."""

    def predict(texts: Sequence[str], size: int) -> None:
        for start in range(0, len(texts), size):
            model.logits([list(texts[start : start + size])], size)

    return predict


def in_bfloat16(classifier: Classifier) -> Contender:
    """Return the classifier under autocast to bfloat16."""

    def predict(texts: Sequence[str], size: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            classifier.logits([list(texts)], size)

    return predict


def pipeline_of(classifier: Classifier, *, batched: bool) -> Contender:
    """Return `transformers.pipeline`, which pads batches in the order of the texts."""
    pipe = pipeline("text-classification", model=classifier.base, tokenizer=classifier.tokenizer, device="cpu")
    cut = {"truncation": True, "max_length": classifier.max_length}
    if batched:
        return lambda texts, size: pipe(list(texts), batch_size=size, **cut)
    return lambda texts, size: pipe(list(texts), **cut)


def trainer_predict(classifier: Classifier) -> Contender:
    """Return `Trainer.predict` with batches in the order of the texts."""
    folder, tokenizer = tempfile.mkdtemp(), classifier.tokenizer

    def predict(texts: Sequence[str], size: int) -> None:
        settings = TrainingArguments(
            folder, per_device_eval_batch_size=size, report_to=[], disable_tqdm=True, use_cpu=True
        )
        trainer = Trainer(classifier.base, settings, DataCollatorWithPadding(tokenizer))
        trainer.remove_callback(PrinterCallback)
        encoded = tokenizer(list(texts), truncation=True, max_length=classifier.max_length)
        trainer.predict(datasets.Dataset.from_dict(dict(encoded)))

    return predict


def evaluation_texts(run: Path, classifier: Classifier) -> list[str]:
    """Return texts of the evaluation split, repeated if there are fewer than ROWS."""
    rows = read_rows(RunFolder(run), classifier.rules)
    assert rows is not None
    assert len(rows.columns) == 1, "the benchmark compares single texts"
    return [rows.columns[0][index % len(rows.labels)] for index in range(ROWS)]


def texts_of_length(classifier: Classifier, texts: Sequence[str], length: int) -> list[str]:
    """Return texts of exactly `length` tokens, made of the given ones, so that no contender pads."""
    tokenizer = classifier.tokenizer
    words = tokenizer(" ".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    words = [word for word in words if not tokenizer.convert_ids_to_tokens(word).startswith("##")]
    special = len(tokenizer("")["input_ids"])
    size = length - special
    made = [tokenizer.decode(words[row * size : (row + 1) * size]) for row in range(len(words) // size)]
    exact = [text for text in made if len(tokenizer(text)["input_ids"]) == length]
    return [exact[row % len(exact)] for row in range(FIXED_ROWS)]


def timed(contender: Contender, texts: Sequence[str], batch_size: int) -> float:
    """Return rows per second."""
    started = time.perf_counter()
    contender(texts, batch_size)
    return len(texts) / (time.perf_counter() - started)


def median_and_range(values: Sequence[float]) -> str:
    """Return "2.61 (2.40 to 2.75)"."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def speed_table(title: str, speeds: Sequence[dict[str, float]]) -> Table:
    """Return rows per second of each contender, and the ratios to ours and to pipeline within a round."""
    table = Table("", "rows/s", f"over {OURS}", f"over {PIPELINE}", title=title)
    for name in speeds[0]:
        ratios = [
            median_and_range([speed[name] / speed[other] for speed in speeds]) if other in speeds[0] else ""
            for other in (OURS, PIPELINE)
        ]
        table.add_row(name, f"{np.median([speed[name] for speed in speeds]):.0f}", *ratios)
    return table


def latencies(all_contenders: dict[str, Contender], text: str) -> dict[str, list[float]]:
    """Return the milliseconds of single calls with one short text, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in all_contenders}
    for call in range(LATENCY_CALLS):
        for name, contender in all_contenders.items():
            if name == "Trainer.predict" and call % 6:
                continue  # it builds its loop for each call
            started = time.perf_counter()
            contender([text], 1)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("pruned", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    quiet_libraries()
    datasets.disable_progress_bars()
    console = Console(highlight=False, width=120)
    with tempfile.TemporaryDirectory() as folder:
        everyone = contenders(args.run, args.pruned or args.run / "pruned", Path(folder))
        classifier = load_classifier(args.run)
        texts = evaluation_texts(args.run, classifier)
        cells: dict[str, tuple[list[str], int]] = {"evaluation rows, batches of 32": (texts, 32)}
        for length in LENGTHS:
            fixed = texts_of_length(classifier, texts, length)
            cells |= {f"{length} tokens, batches of {size}": (fixed, size) for size in BATCH_SIZES}
        for contender in everyone.values():
            contender(texts[:64], 32)  # warm up
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(args.rounds):
            rounds.append(
                {
                    cell: {name: timed(contender, *work) for name, contender in everyone.items()}
                    for cell, work in cells.items()
                }
            )
            console.print(f"round {number + 1} of {args.rounds} done")
        for cell in cells:
            console.print(speed_table(cell, [measured[cell] for measured in rounds]))
        short = min(texts, key=lambda text: abs(len(text.split()) - 8))
        calls = latencies(everyone, short)
    table = Table("", "p50 ms", "p95 ms", title=f"one text of {len(short.split())} words")
    for name, values in calls.items():
        table.add_row(name, *(f"{np.percentile(values, share):.1f}" for share in (50, 95)))
    console.print(table)
    first = next(iter(cells))
    for other, goal in GOALS.items():
        ratios = [measured[first][INT8] / measured[first][other] for measured in rounds]
        reached = "reached" if np.median(ratios) >= goal else "missed"
        console.print(f"{INT8} over {other}: {median_and_range(ratios)}; goal {goal}: {reached}")
    RESULT.parent.mkdir(exist_ok=True)
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": rounds, "latency_ms": calls}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; written to {RESULT}")


if __name__ == "__main__":
    main()
