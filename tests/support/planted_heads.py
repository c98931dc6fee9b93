"""BERT classifiers built by hand, in which the role of every head is known.

A text has words of one strong source, and sometimes of others. Each word is positive or negative, and agrees with the
label with the accuracy of its source. A head reads one source: the first token attends to its words and writes their
sign to a dimension of its own, from which one unit of the pooler passes it through tanh to the logits, weighted by the
log-odds of the source. All other weights are zero, and constant dimensions of the hidden states make layer
normalization almost a constant scale.

    L layers, H heads, D head width, E hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split, word_tokenizer
from finetune.heads.gated_forward import GatedRows
from finetune.models.building import Labels, new_classifier
from finetune.models.classifier import Classifier

LAYERS, HEADS, WIDTH = 2, 8, 10
HIDDEN = HEADS * WIDTH
SOURCES = 10
TYPE, SIGN, OUTPUT = 1, 1 + SOURCES, 1 + 2 * SOURCES  # first dimensions: whose word, its sign, the sign that was read
CONSTANT, COUNTERWEIGHTS, IGNORED = 1 + 3 * SOURCES, 67, 69
FILLERS = ["the", "of", "and", "so", "it"]

Head = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Words that say something about the label.

    Attributes:
        heads: that read it.
        accuracy: probability that a word agrees with the label; 0.5: noise.
        share: of the texts that have a word of this strong source in any case; 0: the source is not strong.
        presence: probability that another text has a word of the source.
        drive: what each head adds to the input of the tanh; one of several heads suffices if it is large.
        needs_all: whether the source has an effect only if all its heads are there.
        weight: of the source in the logits; None: the log-odds of its accuracy.
    """

    heads: tuple[Head, ...]
    accuracy: float
    presence: float
    share: float = 0.0
    drive: float = 1.5
    needs_all: bool = False
    weight: float | None = None


@dataclass(frozen=True)
class Planted:
    """Heads with known roles: the sources that some of them read, and the heads without an effect.

    Attributes:
        dead: heads whose values or output columns are zero.
        decoys: heads with sharp attention and a large output that layer normalization or the pooler discards.
    """

    sources: list[Source]
    dead: list[Head] = field(default_factory=list)
    decoys: list[Head] = field(default_factory=list)


def plant(seed: int) -> Planted:
    """Return random roles for all heads.

    Two heads are essential, two pairs are copies of each other, two heads are needed together or three are copies, one
    is harmful, one weak, one needed by few texts, two dead, and the rest are decoys.
    """
    rng = np.random.default_rng(seed)
    slots = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    free = [slots[number] for number in rng.permutation(len(slots))]

    def take(count: int) -> tuple[Head, ...]:
        return tuple(free.pop() for _ in range(count))

    strong = iter(0.95 * rng.dirichlet([20] * 5))

    def strong_source(heads: int, drive: float = 1.5, *, needs_all: bool = False) -> Source:
        return Source(take(heads), rng.uniform(0.9, 0.98), 0.1, next(strong), drive, needs_all)

    sources = [strong_source(1), strong_source(1), strong_source(2, 3.0), strong_source(2, rng.choice([1.5, 3.0]))]
    sources.append(strong_source(2, needs_all=True) if seed % 2 else strong_source(3, 3.0))
    sources.append(Source(take(1), 0.5, rng.uniform(0.4, 0.6), weight=rng.uniform(2.5, 3.5)))  # harmful
    sources.append(Source(take(1), rng.uniform(0.52, 0.65), rng.uniform(0.2, 0.6)))  # weak
    sources.append(Source(take(1), 0.97, 0.0, share=0.05))  # rare: a few texts need it
    dead = list(take(2))
    return Planted(sources, dead, free)


def planted_classifier(planted: Planted) -> Classifier:
    """Return the classifier whose heads have these roles."""
    vocabulary = datasets.Dataset.from_dict({"sentence": [" ".join([*FILLERS, *_words()])]})
    tokenizer = word_tokenizer(vocabulary, 100)
    sizes = {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": 4,
        "max_position_embeddings": 64,
    }  # fmt: skip
    labels = Labels(("negative", "positive"), "single_label_classification")
    classifier = new_classifier("bert", sizes, tokenizer, labels, max_length=32)
    base = classifier.base
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        _plant_embeddings(classifier)
        for number, source in enumerate(planted.sources):
            for head in source.heads:
                _plant_reader(base, head, number, {OUTPUT + number: 1.0, COUNTERWEIGHTS + 1: -1.0})
            _plant_unit(base, number, source)
        for number, head in enumerate(planted.dead):  # by turns no values and no output
            _plant_reader(base, head, number, {OUTPUT + number: 2.0} if number % 2 else {}, no_values=bool(number % 2))
        for number, head in enumerate(planted.decoys):  # by turns removed by layer normalization and not read
            ones = dict.fromkeys(range(HIDDEN), 5.0)
            _plant_reader(base, head, number, {IGNORED: 0.5, IGNORED + 1: -0.5} if number % 2 else ones)
    return classifier


def planted_rows(planted: Planted, rows: int, seed: int) -> GatedRows:
    """Return rows of random texts for the classifier with these roles."""
    rng, classifier = np.random.default_rng(seed), planted_classifier(planted)
    labels = rng.integers(0, 2, rows)
    shares = [source.share for source in planted.sources]
    texts = []
    for label, strong in zip(labels, rng.choice(len(shares), rows, p=shares), strict=True):
        words = list(rng.choice(FILLERS, rng.integers(1, 4)))
        for number, source in enumerate(planted.sources):
            if number == strong or rng.random() < source.presence:
                agrees = rng.random() < source.accuracy
                words.append(f"{'np'[int(label == agrees)]}{number}")
        texts.append(" ".join(rng.permutation(words)))
    table = datasets.Dataset.from_dict({"sentence": texts})
    split = encode_split(RawSplit(table, "rows"), labels, classifier.tokenizer, ["sentence"], 32)
    return GatedRows(classifier, split, "validation", np.arange(rows), 64, Accelerator(cpu=True))


def _words() -> list[str]:
    """Return all words of all sources: p3 and n3 are the positive and the negative word of source 3."""
    return [f"{sign}{number}" for number in range(SOURCES) for sign in "pn"]


def _plant_embeddings(classifier: Classifier) -> None:
    """Set the word embeddings; the mean of each is 0, so that layer normalization does not mix its dimensions."""
    weight: Tensor = classifier.base.bert.embeddings.word_embeddings.weight
    weight[:, CONSTANT : COUNTERWEIGHTS - 1] = 5.0
    weight[:, CONSTANT : COUNTERWEIGHTS - 1 : 2] = -5.0
    weight[classifier.tokenizer.cls_token_id, 0] = 1
    for word in _words():
        token = classifier.tokenizer.convert_tokens_to_ids(word)
        weight[token, TYPE + int(word[1:])] = 1
        weight[token, SIGN + int(word[1:])] = 1 if word[0] == "p" else -1
    weight[:, COUNTERWEIGHTS] -= weight.sum(1)


def _plant_reader(
    base: torch.nn.Module, head: Head, source: int, writes: dict[int, float], *, no_values: bool = False
) -> None:
    """Let the first token attend to the words of a source and write their sign to some dimensions."""
    attention = base.bert.encoder.layer[head[0]].attention
    column = head[1] * WIDTH
    attention.self.query.weight[column, 0] = 40
    attention.self.key.weight[column, TYPE + source] = 10
    attention.self.value.weight[column, SIGN + source] = 0 if no_values else 3.4
    for dimension, value in writes.items():
        attention.output.dense.weight[dimension, column] = value


def _plant_unit(base: torch.nn.Module, number: int, source: Source) -> None:
    """Let units of the pooler read a source, and the logits read these units."""
    pooler, weight = base.bert.pooler.dense, source.weight
    weight = np.log(source.accuracy / (1 - source.accuracy)) if weight is None else weight
    if not source.needs_all:
        pooler.weight[number, OUTPUT + number] = source.drive * 3.4  # layer normalization divides by about 3.4
        weight /= np.tanh(source.drive * len(source.heads))
        units: Sequence[int] = [number]
    else:  # tanh(4 x - 6) + tanh(4 x + 6) is almost 0 for x = 1, 0, -1, and almost 2 for x = 2, the sum of two heads
        units, weight = [number, SOURCES + number], weight / 1.93
        for unit, sign in zip(units, (-1, 1), strict=True):
            pooler.weight[unit, OUTPUT + number] = 4 * 3.4
            pooler.bias[unit] = 6 * sign
    for unit in units:
        base.classifier.weight[1, unit], base.classifier.weight[0, unit] = weight / 2, -weight / 2
