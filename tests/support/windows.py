"""A small classifier that reads long texts in windows, and rows of one to four windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np

from finetune.data.long_text import LongText
from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from tests.conftest import SENTENCES
from tests.support.helpers import tiny_classifier

LONG_TEXTS = [
    " ".join(SENTENCES),
    SENTENCES[0],
    f"{SENTENCES[5]} {SENTENCES[2]}",
    "a dog",
    " ".join(SENTENCES[::-1] + SENTENCES[:2]),
]


def windowed(
    checkpoint: Path, *, pooling: str = "mean", max_windows: int = 16, lora: Lora | None = None
) -> tuple[Classifier, EncodedSplit]:
    """Return a classifier with windows of 16 tokens, and the five texts as an encoded split."""
    long_text = LongText("window", 4, pooling, max_windows)  # type: ignore[arg-type]
    classifier = replace(tiny_classifier(checkpoint, lora=lora), long_text=long_text)
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": LONG_TEXTS}), "rows")
    labels = np.array([0, 1, 1, 0, 1])
    return classifier, encode_split(raw, labels, classifier.tokenizer, ["sentence"], 16, long_text)
