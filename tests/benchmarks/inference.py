"""Speed of inference: transformers, finetune and ONNX on the same texts, in interleaved rounds.

    python -m tests.benchmarks.inference RUN [PRUNED]    measures: three minutes on two idle cores
    python -m tests.benchmarks.inference --write         keeps the results, and updates the table of the guide

RUN is a finished run with test or validation rows in predictions.parquet, PRUNED a pruned model (default: RUN/pruned).
All contenders get the same texts, and the time includes tokenization.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments, pipeline

from finetune import load_classifier
from finetune.models.classifier import Classifier
from finetune.models.onnx_classifier import OnnxClassifier, load_onnx
from finetune.models.pretrained import quiet_libraries
from finetune.pipeline.export import export
from finetune.pipeline.export_rows import read_rows
from finetune.runs.run_folder import RunFolder
from tests.benchmarks.comparison import markdown
from tests.benchmarks.machine import has_bf16, machine
from tests.benchmarks.rounds import Measurement, Record, measure_rounds, run_benchmark, spread

NAME = "inference"
ROWS, LONG_ROWS, LONG, CALLS = 512, 64, 128, 15  # texts, texts of LONG tokens, calls with one text
OURS, PIPELINE = "finetune, float32", "`pipeline(batch_size=32)`"
Contender = Callable[[Sequence[str], int], object]  # texts and batch size -> anything


def contenders(run: Path, pruned: Path, folder: Path) -> dict[str, Contender]:
    """Return every contender by name; exported models are written to `folder`."""
    classifier = load_classifier(run)
    found: dict[str, Contender] = {
        "`Trainer.predict`": trainer_predict(load_classifier(run)),
        "`pipeline`, default": pipeline_of(load_classifier(run), batched=False),
        PIPELINE: pipeline_of(load_classifier(run), batched=True),
        OURS: lambda texts, size: classifier.logits([list(texts)], size),
    }
    if has_bf16(machine()["kind"]):
        found["finetune, bf16"] = in_bfloat16(classifier)
    float32, int8 = (exported(run, folder / name, int8=name == "int8") for name in ("float32", "int8"))
    one_thread = exported(run, folder / "int8", int8=True, threads=1)
    found["ONNX, float32"] = logits_of(float32)
    found["ONNX, int8"] = logits_of(int8)
    found["ONNX, int8, file order"] = in_file_order(int8)
    found["ONNX, int8, one thread"] = logits_of(one_thread)
    if pruned.is_dir():
        found["ONNX, int8, pruned"] = logits_of(exported(pruned, folder / "pruned", int8=True))
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
    return [exact[row % len(exact)] for row in range(LONG_ROWS)]


def speeds(contender: Contender, texts: Sequence[str], long: Sequence[str], short: str) -> dict[str, float]:
    """Return rows per second in batches of 32, and the milliseconds of a call with one short text."""
    calls = [seconds(contender, [short], 1) for _ in range(CALLS)]
    return {
        "rows per second": len(texts) / seconds(contender, texts, 32),
        "long": len(long) / seconds(contender, long, 32),
        "one text, ms": 1000 * statistics.median(calls),
    }


def seconds(contender: Contender, texts: Sequence[str], batch_size: int) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    contender(texts, batch_size)
    return time.perf_counter() - started


def measure(run: Path, pruned: Path) -> Record:
    """Measure all contenders in interleaved rounds."""
    quiet_libraries()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        everyone = contenders(run, pruned, Path(folder))
        classifier = load_classifier(run)
        texts = evaluation_texts(run, classifier)
        long = texts_of_length(classifier, texts, LONG)
        short = min(texts, key=lambda text: abs(len(text.split()) - 8))
        for contender in everyone.values():
            contender(texts[:64], 32)  # warm up
        runs: dict[str, Callable[[], Measurement]] = {
            name: partial(speeds, contender, texts, long, short) for name, contender in everyone.items()
        }
        settings = {"rows": ROWS, "long rows": LONG_ROWS, "long": LONG, "words of the short text": len(short.split())}
        return measure_rounds(NAME, runs, settings)


def table(record: Record) -> str:
    """Return speeds and ratios of each contender."""
    long = record.settings["long"]
    columns = ["rows per second", f"over {OURS}", f"over {PIPELINE}", f"{long} tokens: rows per second", "one text, ms"]
    rows = [["", *columns]]
    for name in record.rounds[0]:
        ratios = [
            "1" if name == other else spread(record.ratios(name, other, "rows per second"))
            for other in (OURS, PIPELINE)
        ]
        speed, slow = (spread(record.values(name, key), 0) for key in ("rows per second", "long"))
        rows.append([name, speed, *ratios, slow, spread(record.values(name, "one text, ms"), 1)])
    return f"{record.settings['rows']} texts in batches of 32.\n\n{markdown(rows)}"


def main() -> None:
    """Measure and print the table, or keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("pruned", type=Path, nargs="?")
    args, others = parser.parse_known_args()
    if args.run is None and not others:
        parser.error("RUN is missing")
    run_benchmark(NAME, lambda: measure(args.run, args.pruned or args.run / "pruned"), table, others)


if __name__ == "__main__":
    main()
