"""What several test files build: encoded rows, classifiers, plans."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from accelerate import Accelerator

from finetune.data.encoding import EncodedSplit, encode_split
from finetune.data.read import RawSplit
from finetune.heads.sample import Sample
from finetune.lora import Lora
from finetune.modeling import Classifier, Source, load_tokenizer, pretrained_classifier
from finetune.plan import Plan
from tests.conftest import SENTENCES

ROLES = ("query", "key", "value", "output")
HANG_SECONDS = 900  # a process that takes longer hangs; on a busy machine one that works may take minutes


def tiny_classifier(
    checkpoint: Path, *, lora: Lora | None = None, labels: tuple[str, ...] = ("no", "yes")
) -> Classifier:
    source = Source(str(checkpoint))
    return pretrained_classifier(
        source,
        load_tokenizer(source),
        label_names=labels,
        problem_type="single_label_classification",
        max_length=16,
        lora=lora,
    )


def encoded(classifier: Classifier, texts: list[str] | None = None, labels: list[int] | None = None) -> EncodedSplit:
    texts = texts or SENTENCES
    ids = np.array(labels or [index % 2 for index in range(len(texts))])
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "rows")
    return encode_split(raw, ids, classifier.tokenizer, ["sentence"], classifier.max_length)


def sample_of(
    classifier: Classifier, most: int | None = None, *, batch_size: int = 6, split: EncodedSplit | None = None
) -> Sample:
    """The first rows of the six sentences, or of `split`, put to the classifier on a CPU."""
    split = split or encoded(classifier)
    rows = np.arange(len(split) if most is None else most)
    return Sample(classifier, split, "validation", rows, batch_size, Accelerator(cpu=True))


def plan(**changes: int | None) -> Plan:
    facts: dict[str, int | None] = {
        "batch_size": 2, "accumulation": 1, "steps_per_epoch": 3, "epochs": 2, "total_steps": 6,
        "warmup_steps": 0, "log_every": 1, "eval_every": 0, "save_every": None, "patience": None,
    }  # fmt: skip
    return Plan(**{**facts, **changes})  # type: ignore[arg-type]
