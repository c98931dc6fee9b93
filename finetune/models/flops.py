"""The cost of a forward pass in floating-point operations (FLOPs)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from finetune.data.batching import load_batches
from finetune.data.tokenization import EncodedSplit
from finetune.models.classifier import Classifier
from finetune.models.precision import without_flash_attention


def flops_per_row(classifier: Classifier, split: EncodedSplit, device: torch.device) -> int:
    """Return the FLOPs of one forward pass without padding, as the mean over the rows of a split.

    Matrix products are counted, two operations per multiplication and addition; the rest is small. Their number is a
    quadratic function of the number of tokens, so rows of three lengths are enough to know it for every length.
    """
    lengths = np.unique(split.lengths)
    middle = lengths[np.abs(lengths - lengths.mean()).argmin()]
    measured = np.unique([lengths[0], middle, lengths[-1]])
    rows = [np.flatnonzero(split.lengths == length)[:1] for length in measured]
    flops = _flops_of_rows(classifier, split, rows, device)
    curve = np.polynomial.Polynomial.fit(measured, flops, deg=len(measured) - 1)
    return round(float(curve(split.lengths).mean()))


def _flops_of_rows(
    classifier: Classifier, split: EncodedSplit, rows: list[np.ndarray], device: torch.device
) -> list[int]:
    """Return the FLOPs of one forward pass for each of the rows."""
    model, training = classifier.model, classifier.model.training
    model.to(device).eval()
    counts = []
    whole_model = replace(split, states=None)  # cached states would skip the frozen layers
    # The counter does not know every fused attention kernel, but it knows the matrix products of plain attention.
    # Without gradients it fails on DeBERTa, which passes a parameter to its layers.
    with without_flash_attention(classifier.base), sdpa_kernel(SDPBackend.MATH):
        for batch in load_batches(whole_model, rows, classifier.tokenizer, device=device):
            with FlopCounterMode(display=False) as counter:
                model(**batch.inputs)
            counts.append(counter.get_total_flops())
    model.train(training)
    return counts
