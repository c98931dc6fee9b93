"""How much each attention head matters to the loss.

N rows, B batch, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from finetune.data.batching import load_batches, plan_scoring
from finetune.data.encoding import EncodedSplit
from finetune.families import AttentionSite, attention_sites
from finetune.heads.gates import check_gates, head_gates
from finetune.losses import per_example_loss
from finetune.modeling import Classifier
from finetune.results import HeadScores

GRADIENT_FORMULA = "E|dL/dgate|"


def gate_gradients(
    classifier: Classifier, split: EncodedSplit, rows: Sequence[int], *, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """Return each row's gradient of its own loss by each gate, at gates of 1: (N, L, H) in the order of `rows`.

    The losses of a batch are summed, and a row's loss depends on its own gates alone, so that one backward
    pass gives every row's exact gradient; the batch size changes nothing but rounding.
    """
    base, sites = classifier.base, attention_sites(classifier.base)
    chosen = np.asarray(rows)
    batches = [chosen[batch] for batch in plan_scoring(split.lengths[chosen], batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    base.to(accelerator.device)
    found: list[tuple[list[int], np.ndarray]] = []
    with frozen(base):
        loaded = load_batches(split, mine, classifier.tokenizer, device=accelerator.device)
        for numbers, batch in zip(mine, loaded, strict=True):
            if not found:
                check_gates(base, sites, batch.inputs)
            gates = torch.ones(
                len(numbers), len(sites), heads_wide(sites), device=accelerator.device, requires_grad=True
            )
            with head_gates(base, sites, gates), accelerator.autocast():
                logits = base(**batch.inputs).logits
            losses = per_example_loss(logits, batch.labels, classifier.problem_type)
            (gradient,) = torch.autograd.grad(losses.sum(), gates)
            found.append((numbers.tolist(), gradient.cpu().numpy()))
    return _in_order(gather_object(found), chosen)


def gradient_importance(
    classifier: Classifier,
    split: EncodedSplit,
    name: str,
    *,
    max_samples: int | None,
    batch_size: int,
    seed: int,
    accelerator: Accelerator,
) -> HeadScores:
    """Return E|dL/dgate| of every head: the mean over rows of the absolute gradient of a row's loss by its gate.

    Michel, Levy and Neubig 2019, equation 5, with the absolute value taken a row, as the equation says
    (public code takes it a batch, which lets rows cancel). Standard errors are those of the mean over rows.

    Args:
        name: the split's name.
        max_samples: rows drawn from the split with `seed`; None: all.
    """
    rows = sample_rows(len(split), max_samples, seed)
    gradients = np.abs(gate_gradients(classifier, split, rows, batch_size=batch_size, accelerator=accelerator))
    mean = gradients.mean(0, dtype=np.float64)  # (L, H)
    error = gradients.std(0, ddof=1, dtype=np.float64) / np.sqrt(len(rows)) if len(rows) > 1 else None
    sites = attention_sites(classifier.base)
    return HeadScores(
        method="gradient",
        formula=GRADIENT_FORMULA,
        split=name,
        rows=len(rows),
        values=_table(mean, sites),
        standard_errors=_table(error, sites),
    )


def sample_rows(rows: int, most: int | None, seed: int) -> list[int]:
    """Return row numbers: all, or `most` of them drawn without replacement, in ascending order."""
    if most is None or rows <= most:
        return list(range(rows))
    return sorted(np.random.default_rng(seed).choice(rows, most, replace=False).tolist())


def heads_wide(sites: Sequence[AttentionSite]) -> int:
    """Return the width of a table of heads: the largest number of heads in a layer."""
    return max(site.num_heads for site in sites)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode with no parameter asking for gradients; restore both after."""
    asking, training = [p for p in model.parameters() if p.requires_grad], model.training
    try:
        model.eval()
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        model.train(training)


def _in_order(found: list[tuple[list[int], np.ndarray]], rows: np.ndarray) -> np.ndarray:
    by_row = {number: gradient for numbers, part in found for number, gradient in zip(numbers, part, strict=True)}
    return np.stack([by_row[int(number)] for number in rows])


def _table(values: np.ndarray | None, sites: Sequence[AttentionSite]) -> list[list[float | None]]:
    wide = heads_wide(sites)
    return [
        [
            float(values[site.layer, head]) if values is not None and head < site.num_heads else None
            for head in range(wide)
        ]
        for site in sites
    ]
