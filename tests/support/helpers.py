"""Builders that several test files use (encoded rows, classifiers, plans), and the tolerances of comparisons."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import ArrayLike

from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.heads.gated_forward import GatedRows
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer
from finetune.training.schedule import Plan
from tests.conftest import SENTENCES

ROLES = ("query", "key", "value", "output")
# Tolerance, relative to the largest number, for the output of a whole model in float32 when the order of sums differs:
# another batch, kernel, number of threads or processor. The random weights of the tests amplify rounding (6e-8):
# measured up to 6e-6, with AVX-512, with AVX2 and without either. A wrong computation differs by percents.
FLOAT32 = 1e-4
FLOAT64 = 1e-5  # for weights in float64 with logits and losses rounded to float32: measured up to 3e-7
# For weights of up to 2 after a few training steps, each at most a tenth of the gradient (learning rate 1e-2,
# epsilon 0.1): measured up to 5e-7. A row with a wrong weight changes them by 1e-3.
TRAINED = 1e-5
HANG_SECONDS = 900  # a process that takes longer hangs; on a busy machine a working process can take minutes


def in_float64(classifier: Classifier) -> Classifier:
    """Convert all weights to float64, for tests of a formula: only the losses are still rounded to float32."""
    classifier.model.double()
    return classifier


def assert_equal_up_to_rounding(actual: ArrayLike, expected: ArrayLike, of_largest: float = FLOAT32) -> None:
    """Raise AssertionError if a number differs by more than `of_largest` times the largest expected number."""
    actual, expected = (
        np.asarray(x.detach().double() if isinstance(x, torch.Tensor) else x, np.float64) for x in (actual, expected)
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=of_largest * float(np.nanmax(np.abs(expected))))


def tiny_classifier(
    checkpoint: Path, *, lora: Lora | None = None, labels: tuple[str, ...] = ("no", "yes")
) -> Classifier:
    """Return a single-label classifier on a saved checkpoint."""
    source = Source(str(checkpoint))
    return pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(labels, "single_label_classification"),
        max_length=16,
        lora=lora,
    )


def encoded(classifier: Classifier, texts: list[str] | None = None, labels: list[int] | None = None) -> EncodedSplit:
    """Return the texts (by default the six sentences) as an encoded split; labels alternate by default."""
    texts = texts or SENTENCES
    ids = np.array(labels or [index % 2 for index in range(len(texts))])
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "rows")
    return encode_split(raw, ids, classifier.tokenizer, ["sentence"], classifier.max_length)


def sample_of(
    classifier: Classifier, max_rows: int | None = None, *, batch_size: int = 6, split: EncodedSplit | None = None
) -> GatedRows:
    """Return gated rows on a CPU: the first `max_rows` of the six sentences, or of `split`."""
    split = split or encoded(classifier)
    rows = np.arange(len(split) if max_rows is None else max_rows)
    return GatedRows(classifier, split, "validation", rows, batch_size, Accelerator(cpu=True))


def plan(**changes: int | None) -> Plan:
    """Return a training plan of two epochs of three steps of two rows, with these changes."""
    defaults: dict[str, int | None] = {
        "batch_size": 2, "accumulation": 1, "steps_per_epoch": 3, "epochs": 2, "total_steps": 6,
        "warmup_steps": 0, "log_every": 1, "eval_every": 0, "save_every": None, "patience": None,
    }  # fmt: skip
    return Plan(**{**defaults, **changes})  # type: ignore[arg-type]
