"""Importance from attention weights alone: how focused a head is, whatever it does to the loss.

B batch, S tokens, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.errors import ModelError
from finetune.heads.estimate import Estimate, mean_over_rows
from finetune.heads.gated_forward import GatedRows
from finetune.models.classifier import Classifier
from finetune.models.head_gates import max_num_heads


def confidence(sample: GatedRows) -> Estimate:
    """Return the mean over a row's tokens of the largest attention weight (Voita et al. 2019, section 4).

    Voita et al. leave out the end of the sentence; here special tokens count as all others, so a head that rests on
    them is confident too.
    """
    return mean_over_rows(_of_maps(sample, lambda weights: weights.amax(-1)))


def entropy(sample: GatedRows) -> Estimate:
    """Return the mean over a row's tokens of sum a log a: minus the entropy of attention, in nats.

    Clark et al. 2019, section 3.3, with the sign turned, so that a focused head comes first here too.
    """
    return mean_over_rows(_of_maps(sample, lambda weights: torch.xlogy(weights, weights).sum(-1)))


@contextmanager
def eager_attention(classifier: Classifier) -> Iterator[None]:
    """Compute attention weights openly while the context lasts: other implementations do not give them."""
    config, base = classifier.base.config, classifier.base
    before = config._attn_implementation
    try:
        if before != "eager":
            base.set_attn_implementation("eager")
        yield
    finally:
        if before != "eager":
            config._attn_implementation = before  # the method would check flash attention by where the weights lie now


def _of_maps(sample: GatedRows, summary: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Return (N, L, H): `summary`, from (B, H, S, S) to (B, H, S), averaged over each row's real tokens."""
    base, sites, accelerator = sample.classifier.base, sample.sites, sample.accelerator
    model_type = str(base.config.model_type)

    @torch.no_grad()
    def measure(batch: LocalBatch, places: np.ndarray) -> Tensor:
        with accelerator.autocast():
            maps = base(**batch.inputs, output_attentions=True).attentions
        if maps is None or len(maps) != len(sites):
            raise _no_maps(model_type, sites[0].num_heads)
        real = batch.inputs["attention_mask"].float()  # (B, S)
        found = real.new_full((len(places), len(sites), max_num_heads(sites)), torch.nan)
        for site, weights in zip(sites, maps, strict=True):
            _refuse_other_maps(weights, real, site.num_heads, model_type)
            tokens = summary(weights.float())  # (B, H, S)
            found[:, site.layer, : weights.shape[1]] = (tokens * real[:, None]).sum(-1) / real.sum(-1)[:, None]
        return found

    with eager_attention(sample.classifier):
        return sample.map_batches(measure)


def _refuse_other_maps(weights: Tensor, real: Tensor, num_heads: int, model_type: str) -> None:
    """Raise ModelError unless these are (B, H, S, S) weights that sum to 1 (SqueezeBERT hands out raw scores)."""
    tokens = real.shape[1]
    fits = weights.dim() == 4 and weights.shape[1] <= num_heads and weights.shape[2:] == (tokens, tokens)
    room = 1e-4 if weights.dtype == torch.float32 else 3e-2
    if not fits or not bool(((weights.float().sum(-1) - 1).abs() < room).all()):
        raise _no_maps(model_type, num_heads)


def _no_maps(model_type: str, num_heads: int) -> ModelError:
    return ModelError(
        f"a '{model_type}' model gives no attention weights of shape (B, {num_heads}, S, S) that sum to 1; "
        "confidence and entropy do not apply, choose another method"
    )
