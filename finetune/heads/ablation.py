"""What is lost without each attention head: exact leave-one-out, and the measures made from it.

N rows, B batch, S tokens, L layers, H heads (of the layer that has most), C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from finetune.data.batching import LocalBatch
from finetune.errors import ModelError
from finetune.heads.fast_ablation import SAVINGS, Shortcut, logits_without, rows_at_a_time, take_shortcut
from finetune.heads.gated_forward import GatedRows
from finetune.models.attention_sites import AttentionSite
from finetune.models.head_gates import head_gates, max_num_heads, shared_projection_gated
from finetune.models.losses import decisions, divergence, per_example_loss
from finetune.models.precision import uses_flash_attention

# Of the largest logit, in float32. Another order of sums leaves up to 3e-6 of it (as in MobileBERT); a saving that
# a model does not allow changes logits as much as a head does.
_TOLERANCE = 1e-4
# What a layer of another make raises when it is handed what it does not take. Caught in the trial only, which then
# says no; the same error later is an error.
_MISFITS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Ablation:
    """The logits of every row with all heads and without each.

    Attributes:
        whole: (N, C), float32.
        without: (N, L, H, C), float32; NaN where a layer has no such head.
        labels: ids (N,), 0/1 sets (N, C) or values (N,).
        problem_type: as transformers names it.
        savings: of `finetune.heads.fast_ablation`, those that were used; None: a gated forward pass for each head.
    """

    whole: np.ndarray
    without: np.ndarray
    labels: np.ndarray
    problem_type: str
    savings: frozenset[str] | None

    def loss(self) -> np.ndarray:
        """Return each row's loss without each head, minus with it: (N, L, H)."""
        return self._compare(lambda logits, labels: per_example_loss(logits, labels, self.problem_type).double())

    def accuracy(self) -> np.ndarray:
        """Return whether a row is right with each head (1 or 0), minus without it: (N, L, H); 1, 0 or -1.

        A multi-label row is right when its set is.

        Raises:
            ModelError: the classifier predicts a value, which is not right or wrong.
        """
        if self.problem_type == "regression":
            raise ModelError("ablation by accuracy needs classes, and this is a regression; ask for loss or kl")

        def wrong(logits: Tensor, labels: Tensor) -> Tensor:
            missed = decisions(logits, self.problem_type) != labels
            missed = missed.any(-1) if missed.dim() > 1 else missed
            return missed.double().masked_fill(logits.isnan().any(-1), torch.nan)

        return self._compare(wrong)

    def kl(self) -> np.ndarray:
        """Return the divergence KL(p with || p without) of each row's prediction, in nats: (N, L, H).

        For multi-label problems the mean over labels of that of each yes or no; for regression the squared
        difference of the predicted values, which is the divergence of two normal distributions of variance 1/2.
        """
        whole = torch.from_numpy(self.whole).double()[:, None, None]  # (N, 1, 1, C)
        return np.asarray(divergence(whole, torch.from_numpy(self.without).double(), self.problem_type))

    def _compare(self, badness: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        whole, labels = torch.from_numpy(self.whole), torch.from_numpy(self.labels)
        rows, layers, heads, _ = self.without.shape
        flat = torch.from_numpy(self.without).flatten(0, 2)  # (N * L * H, C)
        each = badness(flat, labels.repeat_interleave(layers * heads, 0)).unflatten(0, (rows, layers, heads))
        return np.asarray(each - badness(whole, labels)[:, None, None])


MEASURES: Mapping[str, Callable[[Ablation], np.ndarray]] = {
    "loss": Ablation.loss,
    "kl": Ablation.kl,
    "accuracy": Ablation.accuracy,
}


def ablation(sample: GatedRows, *, fast: bool = True) -> Ablation:
    """Return the logits of every row with all heads and without each, as gates of 0 make them.

    Args:
        fast: share between heads what can be shared; the savings that fit the model are found by trial. Where none
            fits, and with False, there is one gated forward pass for each head.
    """
    base, sites, accelerator = sample.classifier.base, sample.sites, sample.accelerator
    savings = sample_savings(sample) if fast and not shared_projection_gated(base, sites) else None
    if savings is not None:
        sample = replace(sample, batch_size=rows_at_a_time(sites, float(sample.split.lengths[sample.rows].mean())))
    shortcuts: list[Shortcut] = []

    def measure(batch: LocalBatch, places: np.ndarray) -> Tensor:
        if savings is not None and not shortcuts:
            shortcuts.append(take_shortcut(base, sites, savings))
        with accelerator.autocast():
            if shortcuts:
                whole, without = logits_without(shortcuts[0], batch.inputs)
            else:
                whole, without = naive_logits_without(base, sites, batch.inputs)
        wide = max_num_heads(sites)
        table = [F.pad(part.float(), (0, 0, 0, wide - part.shape[1]), value=torch.nan) for part in without]
        return torch.cat([whole.float()[:, None], *table], 1)  # (B, 1 + L * H, C)

    found = sample.map_batches(measure)
    without = found[:, 1:].reshape(len(found), len(sites), -1, found.shape[-1])
    return Ablation(found[:, 0], without, sample.labels, sample.classifier.problem_type, savings)


def naive_logits_without(
    base: PreTrainedModel,
    sites: Sequence[AttentionSite],
    inputs: Mapping[str, Tensor],
    heads: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return what `logits_without` returns, by a gated forward pass for each head."""
    heads = heads or [range(site.num_heads) for site in sites]
    without = []
    with torch.no_grad():
        whole = base(**inputs).logits
        for layer, left_out in enumerate(heads):
            found = []
            for head in left_out:
                gates = torch.ones(len(sites), max_num_heads(sites), device=whole.device)
                gates[layer, head] = 0
                with head_gates(base, sites, gates):
                    found.append(base(**inputs).logits)
            without.append(torch.stack(found, 1))
    return whole, without


def sample_savings(sample: GatedRows) -> frozenset[str] | None:
    """Return the savings that fit with padding and without it: tried on the longest row and the shortest.

    The trial costs as much as the slow way on about two rows, whatever the size of the sample.
    """
    base, sites = sample.classifier.base, sample.sites
    lengths = sample.split.lengths[sample.rows]
    ends = sample.rows[[int(lengths.argmax()), int(lengths.argmin())]]

    def measure(batch: LocalBatch, places: np.ndarray) -> np.ndarray:
        fitting = fitting_savings(base, sites, batch.inputs)
        flags = [fitting is not None, *(saving in (fitting or ()) for saving in SAVINGS)]
        return np.tile(flags, (len(batch.labels), 1))

    trials = [ends[:1]] if lengths.min() == lengths.max() else [ends, ends[1:]]
    tried = np.concatenate([replace(sample, rows=rows, batch_size=2).map_batches(measure) for rows in trials])
    any_fits, *fits = [bool(column.all()) for column in tried.T]
    return frozenset(saving for saving, fit in zip(SAVINGS, fits, strict=True) if fit) if any_fits else None


@torch.no_grad()
def fitting_savings(
    base: PreTrainedModel, sites: Sequence[AttentionSite], inputs: Mapping[str, Tensor]
) -> frozenset[str] | None:
    """Return the savings that leave the logits of `inputs` without a head what gates make them; None: no shortcut.

    Tried in float32 with the first and the last head of each layer, to 1e-4 of the largest logit. Flash attention does
    not compute in float32, and its masks are not those that the shortcuts read: it has none.
    """
    if uses_flash_attention(base):
        return None
    with float32(base), torch.autocast(inputs["input_ids"].device.type, enabled=False):
        heads = [sorted({0, site.num_heads - 1}) for site in sites]
        whole, without = naive_logits_without(base, sites, inputs, heads)
        expected = torch.cat([whole[:, None], *without], 1)  # (B, 1 + 2 * L, C)
        allowed = _TOLERANCE * max(0.1, float(expected.abs().max()))

        def fit(*savings: str) -> bool:
            try:
                found, parts = logits_without(take_shortcut(base, sites, frozenset(savings)), inputs, heads)
            except _MISFITS:
                return False
            return bool((torch.cat([found[:, None], *parts], 1) - expected).abs().max() <= allowed)  # not with a NaN

        if fit(*SAVINGS):
            return frozenset(SAVINGS)
        return frozenset(saving for saving in SAVINGS if fit(saving)) if fit() else None


@contextmanager
def float32(base: nn.Module) -> Iterator[None]:
    """Hold all weights in float32; they come back to the bit."""
    narrow = [t for t in [*base.parameters(), *base.buffers()] if t.is_floating_point() and t.dtype != torch.float32]
    before = [tensor.data for tensor in narrow]
    try:
        for tensor in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(narrow, before, strict=True):
            tensor.data = data
