"""Latency of a classifier by the sizes of its sublayers, measured on this machine.

L layers
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import BatchEncoding

from finetune.heads.gated_forward import frozen
from finetune.heads.sublayers import HEADS, NEURONS, Sublayer, removed_members
from finetune.models.classifier import Classifier
from finetune.models.head_pruning import prune_heads
from finetune.models.neuron_pruning import prune_neurons
from finetune.models.precision import without_flash_attention
from finetune.models.speedups import first_token_only
from finetune.progress import stage

BATCH_SIZE = 32  # of `finetune predict` on a CPU
_SHARES = (0.5, 0.17, 0.0)  # of the parts of every layer that remain in the models that are timed
_ROUNDS = 4
_MAX_BATCHES = 2


@dataclass(frozen=True)
class Latencies:
    """Seconds of a forward pass over the same texts.

    Attributes:
        total: of the whole model.
        by_size: of each sublayer beyond what it takes without parts, for each of `Sublayer.sizes()`.
    """

    total: float
    by_size: tuple[tuple[float, ...], ...]

    def max_speedup(self) -> float:
        """Return how many times as fast the model is without any heads and neurons."""
        return self.total / max(1e-9, self.fixed())

    def fixed(self) -> float:
        """Return the seconds that remain without any heads and neurons."""
        return self.total - sum(seconds[0] for seconds in self.by_size)


def measure_latencies(
    classifier: Classifier, parts: Sequence[Sublayer], texts: Sequence[Sequence[str]], device: torch.device
) -> Latencies:
    """Return the latencies of the forward pass of `finetune predict`, on one thread of a CPU or on an accelerator.

    Whole models are timed, with the same share of heads, or of neurons, in every layer. The time that this saves is
    divided equally between the layers, and interpolated linearly between the shares.

    Args:
        classifier: without adapters.
        texts: rows of the run; texts of evenly spaced lengths are timed.
    """
    kinds = [kind for kind in (HEADS, NEURONS) if any(part.kind == kind for part in parts)]
    models = {(kind, share): _with_share(classifier, parts, kind, share) for kind in kinds for share in _SHARES}
    batches = tokenized_batches(classifier, _evenly_spaced(texts), device)
    total, *others = timed_passes([classifier, *models.values()], batches, device, _ROUNDS)
    medians = dict(zip(models, others, strict=True))
    with first_token_only(classifier.base) as only_first:  # then the last feed-forward network takes almost no time
        last = max(layer for part in parts for layer in part.layers) if only_first else None
    by_size = []
    for part in parts:
        counted = sum(len(p.layers) for p in parts if p.kind == part.kind and not _is_free(p, last))
        times = np.array([medians[part.kind, share] for share in _SHARES[::-1]] + [total])
        saved = np.maximum.accumulate(times) - times[0]  # 0 without parts; never less with more parts
        share = 0.0 if _is_free(part, last) else len(part.layers) / max(1, counted)
        shares = [size / part.num_parts for size in part.sizes()]
        by_size.append(tuple(float(value) for value in np.interp(shares, [*_SHARES[::-1], 1.0], saved) * share))
    return Latencies(total, tuple(by_size))


def _is_free(part: Sublayer, last: int | None) -> bool:
    """Return whether a sublayer is the feed-forward network of the last layer, which computes only the first token."""
    return part.kind == NEURONS and part.layers == (last,)


def _with_share(classifier: Classifier, parts: Sequence[Sublayer], kind: str, share: float) -> Classifier:
    """Return the classifier with this share of the heads or neurons of every layer; other weights are shared."""
    kept = {part: range(round(share * part.num_parts)) for part in parts if part.kind == kind}
    memo = {id(tensor): tensor for tensor in (*classifier.model.parameters(), *classifier.model.buffers())}
    model = copy.deepcopy(classifier.base, memo)
    (prune_heads if kind == HEADS else prune_neurons)(model, removed_members(kept, kind))
    return replace(classifier, model=model)


def _evenly_spaced(texts: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return texts of evenly spaced ranks by length, enough for _MAX_BATCHES batches."""
    by_length = sorted(texts, key=lambda row: sum(map(len, row)))
    count = min(len(by_length), _MAX_BATCHES * BATCH_SIZE)
    return [by_length[int((index + 0.5) * len(by_length) / count)] for index in range(count)]


def tokenized_batches(
    classifier: Classifier, texts: Sequence[Sequence[str]], device: torch.device, batch_size: int = BATCH_SIZE
) -> list[BatchEncoding]:
    """Return the inputs of the model for these texts; texts of similar length share a batch."""
    rows = sorted(texts, key=lambda row: sum(map(len, row)))
    batches = []
    for start in range(0, len(rows), batch_size):
        columns = [list(column) for column in zip(*rows[start : start + batch_size], strict=True)]
        inputs = classifier.tokenizer(
            *columns, truncation=True, max_length=classifier.max_length, padding=True, return_tensors="pt"
        )
        batches.append(inputs.to(device))
    return batches


@torch.no_grad()
def timed_passes(
    classifiers: Sequence[Classifier], batches: Sequence[BatchEncoding], device: torch.device, rounds: int
) -> list[float]:
    """Return the median seconds of each classifier for a pass over the batches, after one warm-up round.

    The classifiers take turns, in alternating order. On a CPU they run on one thread, and its processor time is
    measured, which other programs on a busy machine change less than the time of the clock.
    """
    times: list[list[float]] = [[] for _ in classifiers]
    with _one_thread(device), stage("measuring speed", total=rounds + 1) as progress:
        clock = _clock(device)
        for number in range(-1, rounds):  # the first round is the warm-up
            order = range(len(classifiers)) if number % 2 else range(len(classifiers) - 1, -1, -1)
            for which in order:
                elapsed = _seconds(classifiers[which], batches, device, clock)
                if number >= 0:
                    times[which].append(elapsed)
            progress.advance()
    return [statistics.median(values) for values in times]


def _seconds(
    classifier: Classifier, batches: Sequence[BatchEncoding], device: torch.device, clock: Callable[[], float]
) -> float:
    """Return the seconds of one pass over the batches."""
    synchronize = torch.get_device_module(device).synchronize
    with (
        without_flash_attention(classifier.model),
        frozen(classifier.model.to(device)),
        first_token_only(classifier.base),
    ):
        synchronize()
        start = clock()
        for inputs in batches:
            classifier.model(**inputs)
        synchronize()
        return clock() - start


def _clock(device: torch.device) -> Callable[[], float]:
    return time.thread_time if device.type == "cpu" else time.perf_counter


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, compute on one thread inside the block."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
