"""Compare two classifiers: the same weights, the same logits on a few rows.

B batch, C classes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.precision import rounding_tolerance, without_flash_attention
from finetune.models.pretrained import Source


@torch.no_grad()
def logits_of(classifier: Classifier, texts: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Return logits (B, C) of a few rows, in evaluation mode and without autocast; a row is a text or a pair."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = classifier.tokenizer(
        *columns, truncation=True, max_length=classifier.max_length, padding=True, return_tensors="pt"
    )
    model, training = classifier.model, classifier.model.training
    model.to(device).eval()
    with without_flash_attention(classifier.base):
        logits: Tensor = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits.float().cpu()
    model.train(training)
    return logits


def check_same_logits(logits: Tensor, expected: Tensor, source: Source | None, what: str) -> float:
    """Return the largest difference between two tensors of logits (B, C).

    Args:
        source: names the precision of the weights; None: float32.
        what: what the logits are of, for the message.

    Raises:
        ModelError: they differ by more than 1e-3 of the largest logit (float32) or 3e-2 (lower precision, in which a
            merged weight is rounded once more).
    """
    difference = float((logits - expected).abs().max())
    tolerance = 1e-3 if source is None or source.dtype == "float32" else 3e-2
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise ModelError(f"the logits of {what} differ by {difference:g}; please report it")
    return difference


def check_reload(
    trained: Classifier, reloaded: Classifier, texts: Sequence[Sequence[str]], device: torch.device
) -> float:
    """Return the largest difference of their logits on a few rows, after checking that all weights are equal.

    Weights must be bit-identical. Logits show other differences, such as in the config; they may differ by rounding,
    because equal weights at another memory address may be summed in another order.

    Raises:
        ModelError: a weight is missing or not bit-identical, or the logits differ by more than the rounding of the
            weights' precision.
    """
    first, second = (_weights_in_use(classifier.model) for classifier in (trained, reloaded))
    different = sorted(first.keys() ^ second.keys())
    different += [name for name in first.keys() & second.keys() if not first[name].cpu().equal(second[name].cpu())]
    if different:
        raise ModelError(
            f"the saved model differs from the trained one in {', '.join(different[:3])}; please report it"
        )
    logits = [logits_of(classifier, texts, device) for classifier in (trained, reloaded)]
    difference = float((logits[0] - logits[1]).abs().max())
    if not difference <= rounding_tolerance(trained.model, logits[0]):
        raise ModelError(
            f"the logits of the saved model differ from the trained one's by {difference:g}; please report it"
        )
    return difference


def _weights_in_use(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights except peft's unused copies of modules that are trained in full."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".original_module." not in name}
