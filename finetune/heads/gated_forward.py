"""Forward and backward passes over rows of a split with gates on the attention heads; all head scores build on them.

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

from finetune.data.batching import LocalBatch, load_batches
from finetune.data.cpu_copies import Block, CpuCopies
from finetune.data.sampler import plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results
from finetune.models.attention_sites import AttentionSite, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import scoring_kernels
from finetune.models.head_gates import check_gates, head_gates, head_mask, max_num_heads
from finetune.models.losses import per_example_loss
from finetune.progress import stage
from finetune.recipe.head_costs import CHECKED_ROWS


@dataclass(frozen=True)
class GatedRows:
    """Rows of a split, and the classifier that scores them with gates on its heads.

    Attributes:
        split_name: train, validation or test.
        rows: indices of the rows in the split, (N,).
        batch_size: rows per batch; it changes results only by rounding.
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
        """What the classifier predicts, as transformers names it."""
        return self.classifier.problem_type

    @property
    def labels(self) -> np.ndarray:
        """Labels of the rows, in the order of `rows`."""
        labels: np.ndarray = self.split.labels[self.rows]
        return labels

    def gates(self) -> Tensor:
        """Return gates (L, H) of 1. Cells without a head (see `head_mask`) are never read."""
        return torch.ones(len(self.sites), max_num_heads(self.sites), device=self.accelerator.device)

    def subset(self, rows: np.ndarray) -> GatedRows:
        """Return the same with other rows of the split."""
        return replace(self, rows=rows)

    def map_batches(self, function: Callable[[LocalBatch, np.ndarray], Tensor | np.ndarray]) -> np.ndarray:
        """Return the results of `function` for all rows, (N, ...), in the order of `rows`.

        The model is in evaluation mode and no parameter requires a gradient. The batches are split between the
        processes, and every process returns the results of all. Rows of similar length share a batch.

        Args:
            function: from a batch and the positions of its rows in `rows`, (B,), to one result per row, (B, ...).
        """
        base, device = self.classifier.base, self.accelerator.device
        batches = plan_scoring(self.split.lengths[self.rows], self.batch_size)
        local_batches = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        base.to(device)

        def local_results() -> list[Block]:
            """Return the positions and results of all batches of this process."""
            results = CpuCopies()
            with frozen(base), scoring_kernels(base), stage("rows", total=sum(map(len, local_batches))) as progress:
                rows = [self.rows[positions] for positions in local_batches]
                loaded = load_batches(self.split, rows, self.classifier.tokenizer, device=device)
                for positions, batch in zip(local_batches, loaded, strict=True):
                    result = function(batch, positions)
                    results.add(positions, result.float() if isinstance(result, Tensor) else torch.from_numpy(result))
                    progress.advance(len(positions))
            return results.blocks()

        parts = [part for results in gather_results(self.accelerator, local_results) for part in results]
        positions = np.concatenate([positions for positions, _ in parts])
        assert len(positions) == len(self), f"got results for {len(positions)} of {len(self)} rows"
        ordered: np.ndarray = torch.cat([part for _, (part,) in parts]).numpy()[np.argsort(positions)]
        return ordered


def gated_logits(sample: GatedRows, gates: Tensor) -> Tensor:
    """Return the logits (N, C) in float32 with gates on the heads: (L, H) for all rows, or (N, L, H)."""
    base, accelerator, sites = sample.classifier.base, sample.accelerator, sample.sites

    @torch.no_grad()
    def logits_of(batch: LocalBatch, positions: np.ndarray) -> Tensor:
        with head_gates(base, sites, _gates_at(gates, positions)), accelerator.autocast():
            logits: Tensor = base(**batch.inputs).logits
        return logits.float()

    return torch.from_numpy(sample.map_batches(logits_of))


def row_losses(sample: GatedRows, gates: Tensor) -> np.ndarray:
    """Return the loss of each row, (N,), with gates on the heads: (L, H) for all rows, or (N, L, H)."""
    losses = per_example_loss(gated_logits(sample, gates), torch.as_tensor(sample.labels), sample.problem_type)
    return losses.numpy()


def gate_gradients(sample: GatedRows, gates: Tensor | None = None) -> np.ndarray:
    """Return the gradient of each row's loss with respect to its gates, (N, L, H); NaN where a layer lacks the head.

    A row's loss depends only on its own gates, so one backward pass of the summed loss of a batch gives the exact
    gradient of every row. The batch size changes results only by rounding.

    Args:
        gates: point at which the gradient is taken, (L, H) or (N, L, H); None: all gates 1.
    """
    base, accelerator, sites = sample.classifier.base, sample.accelerator, sample.sites
    point = sample.gates() if gates is None else gates

    def gradients_of(batch: LocalBatch, positions: np.ndarray) -> Tensor:
        row_gates = _gates_at(point, positions).expand(len(positions), *point.shape[-2:])
        row_gates = row_gates.clone().requires_grad_()  # (B, L, H)
        with attention_kernel(accelerator.device), head_gates(base, sites, row_gates), accelerator.autocast():
            logits = base(**batch.inputs).logits
        losses = per_example_loss(logits, batch.labels, sample.problem_type)
        (gradient,) = torch.autograd.grad(losses.sum(), row_gates)
        return gradient

    gradients = sample.map_batches(gradients_of)
    gradients[:, ~head_mask(sample.sites)] = np.nan
    return gradients


def check_all_ones(sample: GatedRows) -> None:
    """Raise ModelError unless gates of 1 leave the logits of the first rows unchanged up to rounding."""

    def check(batch: LocalBatch, positions: np.ndarray) -> np.ndarray:
        with sample.accelerator.autocast():  # flash attention does not compute in float32
            check_gates(sample.classifier.base, sample.sites, batch.inputs)
        return np.zeros(len(positions))

    sample.subset(sample.rows[:CHECKED_ROWS]).map_batches(check)


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which the backward pass of attention is fast.

    On a CPU these are plain matrix products, whose backward pass takes almost no time. The backward pass of torch's
    fused kernel takes half of the total time for rows of a dozen tokens (measured: 1.8 of 3.6 s for 512 rows).
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _gates_at(gates: Tensor, positions: np.ndarray) -> Tensor:
    """Return the gates of the rows at these positions, or gates (L, H) unchanged."""
    return gates[torch.as_tensor(positions, device=gates.device)] if gates.dim() == 3 else gates


def broadcast_decision(accelerator: Accelerator, decision: bool) -> bool:
    """Return the decision of the main process on all processes."""
    decisions = [decision]
    if accelerator.num_processes > 1:
        broadcast_object_list(decisions)
    return decisions[0]


def sample_rows(num_rows: int, max_rows: int | None, seed: int) -> list[int]:
    """Return row indices in ascending order: all, or `max_rows` of them drawn without replacement."""
    if max_rows is None or num_rows <= max_rows:
        return list(range(num_rows))
    return sorted(np.random.default_rng(seed).choice(num_rows, max_rows, replace=False).tolist())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without parameter gradients inside the block; restore both afterwards."""
    trained, training = [p for p in model.parameters() if p.requires_grad], model.training
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)
