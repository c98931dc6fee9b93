"""Rows put to a classifier with gates on its heads: what every measure of a head is made from.

N rows, B batch, L layers, H heads, C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune.data.batching import LocalBatch, load_batches, plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.models.architectures import AttentionSite, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import check_gates, head_gates, head_mask, max_num_heads
from finetune.models.losses import per_example_loss


@dataclass(frozen=True)
class GatedRows:
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
    def problem_type(self) -> str:
        """What the classifier predicts."""
        return self.classifier.problem_type

    @property
    def labels(self) -> np.ndarray:
        """Labels of the rows, in their order."""
        labels: np.ndarray = self.split.labels[self.rows]
        return labels

    def gates(self) -> Tensor:
        """Return gates (L, H) of 1; a layer with fewer heads than another has gates that nothing reads."""
        return torch.ones(len(self.sites), max_num_heads(self.sites), device=self.accelerator.device)

    def subset(self, rows: np.ndarray) -> GatedRows:
        """Return the same with other rows."""
        return replace(self, rows=rows)

    def map_batches(self, measure: Callable[[LocalBatch, np.ndarray], Tensor | np.ndarray]) -> np.ndarray:
        """Return what `measure` finds for each row of each batch, (N, ...), in the order of `rows`.

        `measure` is given a batch and its rows' places among `rows`, (B,). The model is in evaluation mode, its
        parameters ask for no gradient, and each row is put to one of the processes. Batches hold rows of like length.
        """
        base, device = self.classifier.base, self.accelerator.device
        batches = plan_scoring(self.split.lengths[self.rows], self.batch_size)
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        base.to(device)

        def measure_mine() -> list[tuple[np.ndarray, np.ndarray]]:
            found: list[tuple[np.ndarray, np.ndarray]] = []
            with frozen(base):
                rows = [self.rows[places] for places in mine]
                loaded = load_batches(self.split, rows, self.classifier.tokenizer, device=device)
                for places, batch in zip(mine, loaded, strict=True):
                    measured = measure(batch, places)
                    if isinstance(measured, Tensor):
                        measured = measured.detach().float().cpu().numpy()
                    found.append((places, measured))
            return found

        parts = [part for found in gather_results(self.accelerator, measure_mine) for part in found]
        places = np.concatenate([places for places, _ in parts])
        assert len(places) == len(self), f"measured {len(places)} of {len(self)} rows"
        ordered: np.ndarray = np.concatenate([part for _, part in parts])[np.argsort(places)]
        return ordered


def gated_logits(sample: GatedRows, gates: Tensor) -> Tensor:
    """Return the logits (N, C) in float32 with gates on the heads: (L, H) for all rows, or (N, L, H)."""
    base, accelerator, sites = sample.classifier.base, sample.accelerator, sample.sites

    @torch.no_grad()
    def measure(batch: LocalBatch, places: np.ndarray) -> Tensor:
        with head_gates(base, sites, _of_rows(gates, places)), accelerator.autocast():
            logits: Tensor = base(**batch.inputs).logits
        return logits.float()

    return torch.from_numpy(sample.map_batches(measure))


def row_losses(sample: GatedRows, gates: Tensor) -> np.ndarray:
    """Return each row's loss, (N,), with gates on the heads: (L, H) for all rows, or (N, L, H)."""
    losses = per_example_loss(gated_logits(sample, gates), torch.as_tensor(sample.labels), sample.problem_type)
    return losses.numpy()


def gate_gradients(sample: GatedRows, gates: Tensor | None = None) -> np.ndarray:
    """Return each row's gradient of its own loss by each gate: (N, L, H); NaN where a layer lacks the head.

    The losses of a batch are summed, and a row's loss depends on its own gates alone, so that one backward
    pass gives every row's exact gradient; the batch size changes nothing but rounding.

    Args:
        gates: where the gradient is taken, (L, H) or (N, L, H); None: at 1.
    """
    base, accelerator, sites = sample.classifier.base, sample.accelerator, sample.sites
    at = sample.gates() if gates is None else gates

    def measure(batch: LocalBatch, places: np.ndarray) -> Tensor:
        own = _of_rows(at, places).expand(len(places), *at.shape[-2:]).clone().requires_grad_()  # (B, L, H)
        with _attention_kernel(accelerator.device), head_gates(base, sites, own), accelerator.autocast():
            logits = base(**batch.inputs).logits
        losses = per_example_loss(logits, batch.labels, sample.problem_type)
        (gradient,) = torch.autograd.grad(losses.sum(), own)
        return gradient

    found = sample.map_batches(measure)
    found[:, ~head_mask(sample.sites)] = np.nan
    return found


def check_all_ones(sample: GatedRows) -> None:
    """Raise ModelError unless gates of 1 leave the logits of the sample's first rows as they are, but for rounding."""

    def measure(batch: LocalBatch, places: np.ndarray) -> np.ndarray:
        with sample.accelerator.autocast():  # as for what is measured: flash attention does not compute in float32
            check_gates(sample.classifier.base, sample.sites, batch.inputs)
        return np.zeros(len(places))

    sample.subset(sample.rows[:8]).map_batches(measure)


def _attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which attention is differentiated fast.

    torch's fused kernel for CPUs takes half of the whole time for its backward pass on rows of a dozen tokens
    (measured: 1.8 of 3.6 s for 512 of them); plain matrix products take next to none.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _of_rows(gates: Tensor, places: np.ndarray) -> Tensor:
    return gates[torch.as_tensor(places, device=gates.device)] if gates.dim() == 3 else gates


def broadcast_decision(accelerator: Accelerator, decided: bool) -> bool:
    """Return what the main process decided, so that all processes do the same."""
    decision = [decided]
    if accelerator.num_processes > 1:
        broadcast_object_list(decision)
    return decision[0]


def sample_rows(rows: int, most: int | None, seed: int) -> list[int]:
    """Return row numbers: all, or `most` of them drawn without replacement, in ascending order."""
    if most is None or rows <= most:
        return list(range(rows))
    return sorted(np.random.default_rng(seed).choice(rows, most, replace=False).tolist())


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
