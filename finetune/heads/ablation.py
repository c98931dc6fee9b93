"""Ablation of each attention head: exact leave-one-out logits, and the scores computed from them.

N rows, B batch, L layers, H heads (of the layer with the most heads), C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.batching import LocalBatch
from finetune.errors import ModelError
from finetune.heads.fast_ablation import (
    HeadSet,
    PrefixReuse,
    logits_without,
    logits_without_sets,
    prefix_reuse,
    rows_per_batch,
)
from finetune.heads.gated_forward import GatedRows
from finetune.models.attention_sites import AttentionSite, all_heads
from finetune.models.head_gates import head_gates, head_mask, max_num_heads, shared_projection_gated
from finetune.models.losses import decisions, divergence, per_example_loss
from finetune.models.precision import uses_flash_attention
from finetune.models.speedups import first_token_only

PREFIX = "prefix"  # layers below the ablated head are computed once
SHARED_ATTENTION = "shared attention"  # the attention of a layer is computed once for all its heads
FIRST_TOKEN = "first token"  # the last layer computes only the first token (`first_token_only`)
# Relative to the largest logit, in float32. Another order of summation changes logits by up to 3e-6 of it (measured on
# MobileBERT); prefix reuse that does not fit a model changes them as much as a head does.
_TOLERANCE = 1e-4
# Errors of layers that differ from what prefix reuse expects. In the trial they mean that prefix reuse does not fit the
# model; later they are raised.
_TRIAL_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Ablation:
    """The logits of every row with all heads and without each head.

    Attributes:
        full: (N, C), float32.
        without: (N, L, H, C), float32; NaN where a layer lacks the head.
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
        problem_type: as transformers names it.
        savings: of PREFIX, SHARED_ATTENTION and FIRST_TOKEN, those that were used; empty: one gated forward pass per
            head.
    """

    full: np.ndarray
    without: np.ndarray
    labels: np.ndarray
    problem_type: str
    savings: frozenset[str]

    def loss(self) -> np.ndarray:
        """Return how much each row's loss rises without each head, (N, L, H)."""
        return self._rise(lambda logits, labels: per_example_loss(logits, labels, self.problem_type).double())

    def accuracy(self) -> np.ndarray:
        """Return the drop of each row's accuracy without each head, (N, L, H).

        It is 1 if the prediction becomes wrong, -1 if it becomes correct, else 0. A multi-label prediction is correct
        if all its labels are.

        Raises:
            ModelError: the problem is a regression, whose predictions are not correct or wrong.
        """
        if self.problem_type == "regression":
            raise ModelError("ablation by accuracy needs classes, and this is a regression; use loss or kl")

        def wrong(logits: Tensor, labels: Tensor) -> Tensor:
            missed = decisions(logits, self.problem_type) != labels
            missed = missed.any(-1) if missed.dim() > 1 else missed
            return missed.double().masked_fill(logits.isnan().any(-1), torch.nan)

        return self._rise(wrong)

    def kl(self) -> np.ndarray:
        """Return the divergence KL(p with all heads || p without the head) of each row's prediction: (N, L, H).

        In nats. For multi-label problems it is the mean over labels of the divergence of each binary decision; for
        regression the squared difference of the predictions, which is the divergence of two normal distributions of
        variance 1/2.
        """
        full = torch.from_numpy(self.full).double()[:, None, None]  # (N, 1, 1, C)
        return np.asarray(divergence(full, torch.from_numpy(self.without).double(), self.problem_type))

    def _rise(self, error: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        """Return the error of each row without each head, minus that with all heads: (N, L, H)."""
        full, labels = torch.from_numpy(self.full), torch.from_numpy(self.labels)
        rows, layers, heads, _ = self.without.shape
        flat = torch.from_numpy(self.without).flatten(0, 2)  # (N * L * H, C)
        without = error(flat, labels.repeat_interleave(layers * heads, 0)).unflatten(0, (rows, layers, heads))
        return np.asarray(without - error(full, labels)[:, None, None])


MEASURES: Mapping[str, Callable[[Ablation], np.ndarray]] = {
    "loss": Ablation.loss,
    "kl": Ablation.kl,
    "accuracy": Ablation.accuracy,
}


def ablation(sample: GatedRows, *, fast: bool = True) -> Ablation:
    """Return the logits of every row with all heads and without each head, as gates of 0 compute them.

    This is the leave-one-out ablation of Michel, Levy and Neubig 2019, section 3.2.

    Args:
        fast: as in `removal_logits`.
    """
    sets = [(head,) for head in all_heads(sample.sites)]
    full, removed, savings = removal_logits(sample, sets, fast=fast)
    without = np.full((len(full), *sample.gates().shape, full.shape[-1]), np.nan, removed.dtype)
    without[:, head_mask(sample.sites)] = removed
    return Ablation(full, without, sample.labels, sample.classifier.problem_type, savings)


def removal_logits(
    sample: GatedRows, sets: Sequence[HeadSet], *, gates: Tensor | None = None, fast: bool = True
) -> tuple[np.ndarray, np.ndarray, frozenset[str]]:
    """Return the logits with all heads (N, C), those without each set of heads (N, sets, C), and the savings used.

    Args:
        gates: gates of each row, 0 or 1, (N, L, H), which are flipped for the heads of a set; None: all 1.
        fast: compute what the ablations of several heads have in common only once, where the model allows it.
            Otherwise there is one gated forward pass per set.
    """
    base, sites, accelerator = sample.classifier.base, sample.sites, sample.accelerator
    # Flash attention does not compute in float32, in which prefix reuse is tried, and its masks have another form.
    fast = fast and not shared_projection_gated(base, sites) and not uses_flash_attention(base)
    with first_token_only(base) if fast else nullcontext(False) as first_token:
        savings = sample_savings(sample) if fast else frozenset[str]()
        if savings:
            sample = replace(sample, batch_size=rows_per_batch(sites, float(sample.split.lengths[sample.rows].mean())))
        reuse: list[PrefixReuse] = []  # built in the first batch, when the model is on its device

        def logits_of(batch: LocalBatch, positions: np.ndarray) -> Tensor:
            """Return the logits with all heads, and without each set of heads, (B, 1 + sets, C)."""
            if savings and not reuse:
                reuse.append(prefix_reuse(base, sites, shared_attention=SHARED_ATTENTION in savings))
            row_gates = None if gates is None else gates[positions].to(accelerator.device)
            with accelerator.autocast():
                if reuse:
                    full, without = logits_without_sets(reuse[0], batch.inputs, sets, row_gates)
                else:
                    full, without = naive_logits_without_sets(base, sites, batch.inputs, sets, row_gates)
            return torch.cat([full[:, None], without], 1).float()

        logits = sample.map_batches(logits_of)
    return logits[:, 0], logits[:, 1:], savings | ({FIRST_TOKEN} if first_token else set())


def naive_logits_without(
    base: PreTrainedModel,
    sites: Sequence[AttentionSite],
    inputs: Mapping[str, Tensor],
    heads: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return the same as `logits_without`, by one gated forward pass per head."""
    heads = heads or [range(site.num_heads) for site in sites]
    sets = [((layer, head),) for layer, ablated in enumerate(heads) for head in ablated]
    full, without = naive_logits_without_sets(base, sites, inputs, sets)
    return full, list(without.split([len(ablated) for ablated in heads], 1))


@torch.no_grad()
def naive_logits_without_sets(
    base: PreTrainedModel,
    sites: Sequence[AttentionSite],
    inputs: Mapping[str, Tensor],
    sets: Sequence[HeadSet],
    gates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `logits_without_sets`, by one gated forward pass per set."""
    point = torch.ones(len(sites), max_num_heads(sites)) if gates is None else gates
    logits = []
    for removed in ((), *sets):
        set_gates = point.clone()
        for layer, head in removed:
            set_gates[..., layer, head] = 1 - set_gates[..., layer, head]
        with head_gates(base, sites, set_gates) if removed or gates is not None else nullcontext():
            logits.append(base(**inputs).logits)
    return logits[0], torch.stack(logits[1:], 1)


def sample_savings(sample: GatedRows) -> frozenset[str]:
    """Return which of PREFIX and SHARED_ATTENTION fit the model, with padding and without it.

    They are tried on the longest and the shortest row. The trial costs as much as about two rows of the naive
    ablation, whatever the size of the sample.
    """
    base, sites = sample.classifier.base, sample.sites
    lengths = sample.split.lengths[sample.rows]
    extremes = sample.rows[[int(lengths.argmax()), int(lengths.argmin())]]

    def trial(batch: LocalBatch, positions: np.ndarray) -> np.ndarray:
        fitting = fitting_savings(base, sites, batch.inputs)
        return np.tile([PREFIX in fitting, SHARED_ATTENTION in fitting], (len(batch.labels), 1))

    trials = [extremes[:1]] if lengths.min() == lengths.max() else [extremes, extremes[1:]]
    results = np.concatenate([replace(sample, rows=rows, batch_size=2).map_batches(trial) for rows in trials])
    prefix, shared_attention = (bool(column.all()) for column in results.T)
    return frozenset({PREFIX, SHARED_ATTENTION} if shared_attention else {PREFIX} if prefix else ())


@torch.no_grad()
def fitting_savings(
    base: PreTrainedModel, sites: Sequence[AttentionSite], inputs: Mapping[str, Tensor]
) -> frozenset[str]:
    """Return which of PREFIX and SHARED_ATTENTION give the same logits of `inputs` without a head as gates do.

    Tried in float32 with the first and the last head of each layer, to 1e-4 of the largest logit.
    """
    with float32(base), torch.autocast(inputs["input_ids"].device.type, enabled=False):
        heads = [sorted({0, site.num_heads - 1}) if site.num_heads else [] for site in sites]
        full, without = naive_logits_without(base, sites, inputs, heads)
        expected = torch.cat([full[:, None], *without], 1)  # (B, 1 + at most 2 * L, C)
        tolerance = _TOLERANCE * max(0.1, float(expected.abs().max()))

        def fits(*, shared_attention: bool) -> bool:
            try:
                full, without = logits_without(
                    prefix_reuse(base, sites, shared_attention=shared_attention), inputs, heads
                )
            except _TRIAL_ERRORS:
                return False
            difference = (torch.cat([full[:, None], *without], 1) - expected).abs().max()
            return bool(difference <= tolerance)  # False for NaN

        if fits(shared_attention=True):
            return frozenset({PREFIX, SHARED_ATTENTION})
        return frozenset({PREFIX} if fits(shared_attention=False) else ())


@contextmanager
def float32(base: nn.Module) -> Iterator[None]:
    """Cast all weights to float32 inside the block; the originals are restored bit for bit."""
    narrow = [t for t in [*base.parameters(), *base.buffers()] if t.is_floating_point() and t.dtype != torch.float32]
    originals = [tensor.data for tensor in narrow]
    try:
        for tensor in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(narrow, originals, strict=True):
            tensor.data = data
