from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.heads.output_moments import output_moments
from finetune.heads.sublayers import sublayers
from tests.support.helpers import assert_equal_up_to_rounding, sample_of, tiny_classifier


def test_moments_are_those_of_the_tokens_and_do_not_depend_on_the_batch_size(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert, labels=("a", "b", "c"))
    parts = sublayers(classifier.base)
    sample = sample_of(classifier, batch_size=2)
    inputs: list[Tensor] = []
    first = parts[0]

    def record(module: Any, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])

    handle = classifier.base.get_submodule(first.output).register_forward_pre_hook(record)
    tokens = []

    def observe(batch: LocalBatch, positions: np.ndarray) -> np.ndarray:
        classifier.base(**batch.inputs)
        tokens.append(inputs[-1][batch.inputs["attention_mask"].bool()].detach())  # without padding
        return np.zeros(len(positions))

    sample.map_batches(observe)
    handle.remove()
    states = torch.cat(tokens).double()
    moments = output_moments(sample, parts, seed=0)
    assert_equal_up_to_rounding(moments[0].mean, states.mean(0))
    assert_equal_up_to_rounding(moments[0].covariance, torch.cov(states.T, correction=0))
    assert not any(module._forward_hooks for module in classifier.base.modules())
    whole = output_moments(sample_of(classifier, batch_size=6), parts, seed=0)
    for one, other in zip(moments, whole, strict=True):  # the last attention: only the first token has an effect
        assert_equal_up_to_rounding(one.covariance, other.covariance)


def test_the_sensitivity_is_the_expected_squared_change_of_the_logits(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert, labels=("a", "b", "c"))
    parts = sublayers(classifier.base)[-1:]
    sample = sample_of(classifier, 1)
    module = classifier.base.get_submodule(parts[0].output)
    sensitivity = torch.stack([output_moments(sample, parts, seed)[0].sensitivity for seed in range(400)]).mean(0)
    # BERT's pooler reads the first token, so this is one vector times its transpose, summed over the logits.
    change = torch.randn(module.weight.shape[0], generator=torch.Generator().manual_seed(0)) * 1e-3
    logits = []
    for size in (0.0, 1.0):
        handle = module.register_forward_hook(lambda module, args, output, size=size: output + size * change)
        sample.map_batches(
            lambda batch, positions: logits.append(classifier.base(**batch.inputs).logits) or np.zeros(len(positions))
        )
        handle.remove()
    measured = float((logits[1] - logits[0]).double().square().sum())
    expected = float(change.double() @ sensitivity @ change.double())
    assert 0.8 < expected / measured < 1.25  # 400 random directions
