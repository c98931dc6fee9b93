from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.heads.latency import Latencies, measure_latencies, timed_passes, tokenized_batches
from finetune.heads.sublayers import HEADS, NEURONS, sublayers
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.feed_forward_sites import feed_forward_sites
from tests.conftest import SENTENCES
from tests.support.helpers import tiny_classifier

CPU = torch.device("cpu")
TEXTS = [(sentence,) for sentence in SENTENCES]


def test_latencies_are_derived_from_whole_models(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timer that counts heads and neurons, each head takes 5 s, each neuron 1 s and the rest 100 s."""

    def count(classifiers: Sequence[Classifier], *_: Any) -> list[float]:
        heads = [sum(site.num_heads for site in attention_sites(c.base)) for c in classifiers]
        neurons = [feed_forward_sites(c.base)[0].num_neurons for c in classifiers]  # the last layer computes one token
        return [100 + 5.0 * h + n for h, n in zip(heads, neurons, strict=True)]

    monkeypatch.setattr("finetune.heads.latency.timed_passes", count)
    classifier = tiny_classifier(tiny_bert)
    weights = {name: tensor.clone() for name, tensor in classifier.base.state_dict().items()}
    parts = sublayers(classifier.base)
    latencies = measure_latencies(classifier, parts, TEXTS, CPU)
    assert latencies.total == 100 + 5 * 6 + 32
    for part, seconds in zip(parts, latencies.by_size, strict=True):
        is_last = part.kind == NEURONS and part.layers == (1,)
        unit = 5.0 if part.kind == HEADS else 0.0 if is_last else 1.0
        assert seconds == pytest.approx([unit * size for size in part.sizes()], abs=2.5)  # 0.17 of 3 heads is one
        assert seconds[0] == pytest.approx(unit * part.num_parts)
        assert seconds[-1] == 0
    assert latencies.fixed() == pytest.approx(100)
    assert latencies.max_speedup() == pytest.approx(1.62)
    assert all(tensor.equal(weights[name]) for name, tensor in classifier.base.state_dict().items())


def test_a_smaller_sublayer_never_takes_longer(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "finetune.heads.latency.timed_passes",
        lambda classifiers, *_: [float(7 * i % 5 + 1) for i in range(len(classifiers))],
    )
    classifier = tiny_classifier(tiny_bert)
    latencies = measure_latencies(classifier, sublayers(classifier.base, [HEADS]), TEXTS, CPU)
    for seconds in latencies.by_size:
        assert list(seconds) == sorted(seconds, reverse=True)


def test_passes_are_timed_in_turns_after_a_warm_up(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_classifier(tiny_bert)
    second = replace(first, model=tiny_classifier(tiny_bert).model)
    calls: list[str] = []
    for name, classifier in (("first", first), ("second", second)):
        classifier.model.register_forward_hook(lambda *_, name=name: calls.append(name))
    clock = iter(range(1000))
    monkeypatch.setattr("finetune.heads.latency._clock", lambda device: lambda: float(next(clock)))
    monkeypatch.setattr("finetune.heads.latency.first_token_only", lambda base: nullcontext())
    batches = tokenized_batches(first, TEXTS, CPU, batch_size=4)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 2]
    threads = torch.get_num_threads()
    assert timed_passes([first, second], batches, CPU, rounds=2) == [1.0, 1.0]
    assert torch.get_num_threads() == threads
    assert calls == [name for name in ("first", "second", "second", "first", "first", "second") for _ in batches]
    assert all(parameter.requires_grad for parameter in first.model.parameters())


def test_the_largest_speed_without_parts() -> None:
    assert Latencies(4.0, ((1.0, 0.5, 0.0), (2.0, 0.0))).max_speedup() == 4.0
