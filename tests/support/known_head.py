"""A classifier with a known most important head: one head carries the label, the others only noise."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split, word_tokenizer
from finetune.heads.gated_forward import GatedRows
from finetune.models.building import Labels, new_classifier
from finetune.models.classifier import Classifier

THE_HEAD = (0, 2)
HEADS, WIDTH, HIDDEN = 4, 4, 8
NOISE = ["red", "green", "blue", "tall", "small", "round"]


def texts_and_labels(rows: int) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(0)
    labels = [row % 2 for row in range(rows)]
    texts = [
        " ".join(rng.permutation([*rng.choice(NOISE, int(rng.integers(2, 5))), ("bad", "good")[label]]).tolist())
        for label in labels
    ]
    return texts, labels


def known_head(rows: int = 64) -> GatedRows:
    """Return gated rows of a classifier in which only THE_HEAD reads the word that determines the label.

    "good" and "bad" are 1 and -1 in dimension 0 of the embedding, where all other words are 0. Only the value
    projection of THE_HEAD reads that dimension; the other heads read the other dimensions, and all heads write to
    dimensions that the dense layer reads.
    """
    texts, labels = texts_and_labels(rows)
    table = datasets.Dataset.from_dict({"sentence": texts})
    tokenizer = word_tokenizer(table, 40)
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "head_dim": WIDTH, "intermediate_size": 16}
    classifier = new_classifier(
        "multi_head_classifier",
        sizes,
        tokenizer,
        Labels(("bad", "good"), "single_label_classification"),
        max_length=16,
    )
    base = classifier.base
    ids = tokenizer.convert_tokens_to_ids
    head_columns = slice(THE_HEAD[1] * WIDTH, (THE_HEAD[1] + 1) * WIDTH)
    with torch.no_grad():
        base.embedding.weight.normal_()
        base.embedding.weight[:, 0] = 0
        base.embedding.weight[ids("good"), 0], base.embedding.weight[ids("bad"), 0] = 1, -1
        value = base.layers[0].attention.value
        value.weight[:, 0] = 0
        value.weight[head_columns] = 0
        value.weight[head_columns.start, 0] = 4
        value.bias.zero_()
        output = base.layers[0].attention.output.weight  # (E, H * D)
        output.mul_(0.3)
        output[:, head_columns] = 0
        output[0] = 0
        output[0, head_columns.start] = 4  # the dimension of the label, which no other head writes to
        base.dense.weight.mul_(0.3)
        base.dense.weight[:2] = 0
        base.dense.weight[0, 0], base.dense.weight[1, 0] = 1, -1  # the positive and the negative part of the label
        base.classifier.weight.mul_(0.1)
        base.classifier.weight[0, 0], base.classifier.weight[0, 1] = 2, -2
    return sample(classifier, encode_split(RawSplit(table, "rows"), np.array(labels), tokenizer, ["sentence"], 16))


def sample(classifier: Classifier, split: EncodedSplit, rows: int | None = None) -> GatedRows:
    return GatedRows(classifier, split, "validation", np.arange(rows or len(split)), 16, Accelerator(cpu=True))
