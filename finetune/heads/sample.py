"""Rows put to a classifier with gates on its heads: what every measure of a head is made from.

N rows, B batch, L layers, H heads, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from finetune.data.batching import LocalBatch, load_batches, plan_scoring
from finetune.data.encoding import EncodedSplit
from finetune.families import AttentionSite, attention_sites
from finetune.heads.gates import check_gates, head_gates
from finetune.losses import per_example_loss
from finetune.modeling import Classifier


@dataclass(frozen=True)
class Sample:
    """Rows of a split, and the classifier that they are put to.

    Attributes:
        split_name: train, validation or test.
        rows: their numbers in the split, (N,).
        batch_size: rows of a batch; it changes no result but by rounding.
    """

    classifier: Classifier
    split: EncodedSplit
    split_name: str
    rows: np.ndarray
    batch_size: int
    accelerator: Accelerator

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sites(self) -> list[AttentionSite]:
        """The classifier's attention sites."""
        return attention_sites(self.classifier.base)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the rows, in their order."""
        labels: np.ndarray = self.split.labels[self.rows]
        return labels

    def gates(self) -> Tensor:
        """Return gates (L, H) of 1; a layer with fewer heads than another has gates that nothing reads."""
        return torch.ones(len(self.sites), heads_wide(self.sites), device=self.accelerator.device)

    def only(self, rows: np.ndarray) -> Sample:
        """Return the same with other rows."""
        return replace(self, rows=rows)

    def batches(self) -> list[np.ndarray]:
        """Return the row numbers of each batch that `each` puts to this process, in its order."""
        batches = [self.rows[batch] for batch in plan_scoring(self.split.lengths[self.rows], self.batch_size)]
        return batches[self.accelerator.process_index :: self.accelerator.num_processes]

    def each(self, measure: Callable[[LocalBatch], Tensor | np.ndarray]) -> np.ndarray:
        """Return what `measure` finds for each row of each batch, (N, ...), in the order of `rows`.

        The model is in evaluation mode, its parameters ask for no gradient, and each row is put to one of the
        processes. Batches hold rows of like length.
        """
        base, device, mine = self.classifier.base, self.accelerator.device, self.batches()
        base.to(device)
        found: list[tuple[list[int], np.ndarray]] = []
        with frozen(base):
            loaded = load_batches(self.split, mine, self.classifier.tokenizer, device=device)
            for numbers, batch in zip(mine, loaded, strict=True):
                measured = measure(batch)
                if isinstance(measured, Tensor):
                    measured = measured.detach().float().cpu().numpy()
                found.append((numbers.tolist(), measured))
        by_row = {
            number: value for rows, part in gather_object(found) for number, value in zip(rows, part, strict=True)
        }
        return np.stack([by_row[int(number)] for number in self.rows])


def draw_sample(
    classifier: Classifier,
    split: EncodedSplit,
    split_name: str,
    *,
    most: int | None,
    batch_size: int,
    seed: int,
    accelerator: Accelerator,
) -> Sample:
    """Return a sample of at most `most` rows drawn from the split with `seed`; None: all of them."""
    rows = np.array(sample_rows(len(split), most, seed))
    return Sample(classifier, split, split_name, rows, batch_size, accelerator)


def gated_logits(sample: Sample, gates: Tensor) -> Tensor:
    """Return the logits (N, C) in float32 with gates (L, H) on the heads."""
    base, accelerator, sites = sample.classifier.base, sample.accelerator, sample.sites

    @torch.no_grad()
    def measure(batch: LocalBatch) -> Tensor:
        with head_gates(base, sites, gates), accelerator.autocast():
            logits: Tensor = base(**batch.inputs).logits
        return logits.float()

    return torch.from_numpy(sample.each(measure))


def gate_gradients(
    sample: Sample, gates: Tensor | None = None, loss: Callable[[Tensor, LocalBatch], Tensor] | None = None
) -> np.ndarray:
    """Return each row's gradient of its own loss by each gate: (N, L, H).

    The losses of a batch are summed, and a row's loss depends on its own gates alone, so that one backward
    pass gives every row's exact gradient; the batch size changes nothing but rounding.

    Args:
        gates: (L, H), where the gradient is taken; None: at 1.
        loss: from logits (B, C) and batch to losses (B,); None: the loss of the problem type.
    """
    classifier, accelerator, sites = sample.classifier, sample.accelerator, sample.sites
    base, at, unchecked = classifier.base, sample.gates() if gates is None else gates, [check_gates]

    def measure(batch: LocalBatch) -> Tensor:
        if unchecked:
            unchecked.pop()(base, sites, batch.inputs)
        own = at.expand(len(batch.labels), *at.shape).clone().requires_grad_()  # (B, L, H)
        with head_gates(base, sites, own), accelerator.autocast():
            logits = base(**batch.inputs).logits
        if loss is None:
            losses = per_example_loss(logits, batch.labels, classifier.problem_type)
        else:
            losses = loss(logits.float(), batch)
        (gradient,) = torch.autograd.grad(losses.sum(), own)
        return gradient

    return sample.each(measure)


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
