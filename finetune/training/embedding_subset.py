"""Training the embeddings of only those tokens that occur in the training split (on a CPU).

Most tokens of a vocabulary do not occur in a data set: their gradient is zero. Computing the gradient of the full
table, its norm and AdamW's two moments took a tenth of a step (30,522 tokens of width 384, batches of 32 rows, two
threads, bfloat16).

    V tokens of the vocabulary, K of them trained, E embedding width
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from finetune.data.tokenization import EncodedSplit
from finetune.errors import TrainingError

_ROWS_PER_READ = 10_000


class EmbeddingSubset:
    """A table of the trained embeddings, (K, E), used instead of the model's full table, (V, E).

    Optimizer steps change only `rows`; `write_back` copies them into the model. All other embeddings only decay, as
    they do under AdamW.

    Attributes:
        ids: the ids of the trained tokens, (K,).
        weight: the model's full table, (V, E).
        rows: the trained embeddings, (K, E); the optimizer gets these instead of `weight`.
    """

    def __init__(self, module: nn.Embedding, ids: Tensor, device: torch.device) -> None:
        """Copy the embeddings of these tokens from `module`."""
        self.ids, self.weight, self._module = ids.to(device), module.weight, module
        self.rows = nn.Parameter(module.weight.detach().to(device)[self.ids])
        others = torch.ones(module.num_embeddings, dtype=torch.bool, device=device)
        others[self.ids] = False
        self._others = others.nonzero()[:, 0]
        self._initial_others = module.weight.detach().to(device)[self._others]
        # Tokens outside the subset have the index K, which is an index error, never another token's embedding.
        self._row_of_id = torch.full((module.num_embeddings,), len(ids), device=device)
        self._row_of_id[self.ids] = torch.arange(len(ids), device=device)
        padding = module.padding_idx
        self._padding_row = None if padding is None or padding not in ids else int(self._row_of_id[padding])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model look up embeddings in `rows`; every token of its input must be in the subset."""
        handle = self._module.register_forward_hook(self._look_up)
        try:
            yield
        finally:
            handle.remove()

    def _look_up(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return F.embedding(self._row_of_id[args[0]], self.rows, self._padding_row)

    @torch.no_grad()
    def write_back(self, weight_decay_factor: float) -> None:
        """Copy the trained embeddings into the model.

        Args:
            weight_decay_factor: what all embeddings outside the subset are multiplied with, relative to the start.
        """
        self.weight[self.ids] = self.rows
        # Always from the initial values: the result does not depend on how often this is called.
        self.weight[self._others] = self._initial_others * weight_decay_factor

    @torch.no_grad()
    def load(self, weight_decay_factor: float) -> None:
        """Copy the embeddings that the model has now into `rows`.

        Raises:
            TrainingError: the embeddings outside the subset are not the initial ones times `weight_decay_factor`.
        """
        if not torch.equal(self.weight[self._others], self._initial_others * weight_decay_factor):
            raise TrainingError(
                "the checkpoint started from other embeddings than those of the model that was loaded; restore the "
                "original model, or start a new run"
            )
        self.rows.copy_(self.weight[self.ids])


def make_embedding_subset(
    model: PreTrainedModel, split: EncodedSplit, padding: int | None, device: torch.device
) -> EmbeddingSubset | None:
    """Return the embeddings of the tokens in `split`; None if they are frozen, shared, or not a plain embedding table.

    None also on an accelerator: the gain was measured on a CPU. There, a token outside the subset is an IndexError;
    on a GPU it is a device-side assert, after which the process cannot continue.

    Args:
        padding: the id that rows are padded with.
    """
    if device.type != "cpu":
        return None
    if not type(model).__module__.startswith(("transformers.", "finetune.")):
        return None  # code that comes with a checkpoint may read the table in other ways
    module = model.get_input_embeddings()
    if type(module) is not nn.Embedding or not module.weight.requires_grad or module.max_norm is not None:
        return None
    uses = sum(weight is module.weight for _, weight in model.named_parameters(remove_duplicate=False))
    if uses > 1 or module.sparse or module.scale_grad_by_freq or split.states is not None:
        return None
    occurs = torch.zeros(module.num_embeddings, dtype=torch.bool)
    for token in {padding, module.padding_idx} - {None}:  # some models pad again, with their own id
        occurs[token] = True
    for table in split.rows.select_columns("input_ids").with_format("arrow").iter(batch_size=_ROWS_PER_READ):
        for chunk in table.column("input_ids").chunks:
            occurs[torch.from_numpy(chunk.flatten().to_numpy(zero_copy_only=False).copy())] = True
    return EmbeddingSubset(module, occurs.nonzero()[:, 0], device)
