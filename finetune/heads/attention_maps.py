"""Head importance from attention weights alone: how focused a head is, independent of its effect on the loss.

B batch, S tokens, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.data.windows import WINDOW_COUNTS, pool_windows
from finetune.errors import ModelError
from finetune.heads.gated_forward import GatedRows
from finetune.heads.importance_estimate import Estimate, mean_over_rows
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import max_num_heads


def confidence(sample: GatedRows) -> Estimate:
    """Return the mean over tokens of the largest attention weight, (L, H), 0 to 1 (Voita et al. 2019, section 4).

    Voita et al. exclude the end-of-sentence token. Here special tokens count like all others, so a head that attends
    mostly to them is confident too.
    """
    return mean_over_rows(_mean_over_tokens(sample, lambda weights: weights.amax(-1)))


def entropy(sample: GatedRows) -> Estimate:
    """Return the mean over tokens of sum a log a, (L, H): minus the entropy of the attention weights a, in nats.

    Clark et al. 2019, section 3.3, with the sign reversed, so that a higher value means a more focused head.
    """
    return mean_over_rows(_mean_over_tokens(sample, lambda weights: torch.xlogy(weights, weights).sum(-1)))


@contextmanager
def eager_attention(classifier: Classifier) -> Iterator[None]:
    """Use eager attention inside the block; other implementations do not return attention weights."""
    config, base = classifier.base.config, classifier.base
    before = config._attn_implementation
    try:
        if before != "eager":
            base.set_attn_implementation("eager")
        yield
    finally:
        if before != "eager":
            config._attn_implementation = before  # the method would check flash attention for the current device


def attention_maps(classifier: Classifier, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the attention weights of each layer, (B, H, S, S). Call it inside `eager_attention`.

    Raises:
        ModelError: the model returns no attention weights, or none that sum to 1.
    """
    base, sites = classifier.base, attention_sites(classifier.base)
    model_type = str(base.config.model_type)
    maps: tuple[Tensor, ...] | None = base(**inputs, output_attentions=True).attentions
    if maps is None or len(maps) != len(sites):
        raise _no_maps(model_type, sites[0].num_heads)
    for site, weights in zip(sites, maps, strict=True):
        _check_maps(weights, inputs["input_ids"].shape[1], site.num_heads, model_type)
    return maps


def _mean_over_tokens(sample: GatedRows, summary: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Return the mean over the real tokens of each row, (N, L, H), of `summary`, from (B, H, S, S) to (B, H, S)."""
    sites, accelerator = sample.sites, sample.accelerator

    @torch.no_grad()
    def row_means(batch: LocalBatch, positions: np.ndarray) -> Tensor:
        """Return the summary of each head's map, averaged over the tokens of each row, (B, L, H)."""
        with accelerator.autocast():
            maps = attention_maps(sample.classifier, batch.inputs)
        mask = batch.inputs["attention_mask"].float()  # (B, S)
        means = mask.new_full((len(positions), len(sites), max_num_heads(sites)), torch.nan)
        for site, weights in zip(sites, maps, strict=True):
            tokens = summary(weights.float())  # (B, H, S)
            of_windows = (tokens * mask[:, None]).sum(-1) / mask.sum(-1)[:, None]  # (W, H)
            means[:, site.layer, : weights.shape[1]] = pool_windows(of_windows, batch.inputs.get(WINDOW_COUNTS), "mean")
        return means

    with eager_attention(sample.classifier):
        return sample.map_batches(row_means)


def _check_maps(weights: Tensor, tokens: int, num_heads: int, model_type: str) -> None:
    """Raise ModelError unless the weights are (B, H, S, S) and sum to 1 (SqueezeBERT returns raw scores)."""
    fits = weights.dim() == 4 and weights.shape[1] <= num_heads and weights.shape[2:] == (tokens, tokens)
    tolerance = 1e-4 if weights.dtype == torch.float32 else 3e-2
    if not fits or not bool(((weights.float().sum(-1) - 1).abs() < tolerance).all()):
        raise _no_maps(model_type, num_heads)


def _no_maps(model_type: str, num_heads: int) -> ModelError:
    """Return the error for a model without usable attention weights."""
    return ModelError(
        f"a '{model_type}' model returns no attention weights of shape (B, {num_heads}, S, S) that sum to 1; "
        "confidence and entropy do not apply; choose another method"
    )
