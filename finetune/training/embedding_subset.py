"""Train only the embeddings of tokens that occur in the training split (on a CPU).

Most tokens of a vocabulary do not occur in a data set, so the gradient of their embeddings is zero. The gradient of the
full table, its norm and AdamW's two moments took a tenth of the time of a step (30,522 tokens of width 384, batches of
32 rows, two threads, bfloat16).

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

    Optimizer steps change only `rows`; `write_back` copies them into the model, and applies AdamW's weight decay to all
    other embeddings.

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
        # Tokens outside the subset have the index K: looking them up raises an IndexError.
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
            weight_decay_factor: the initial embeddings outside the subset are multiplied by it.
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

    None on every device but a CPU, where the gain was measured: a token outside the subset raises an IndexError on a
    CPU, but on a GPU it is a device-side assert, after which the process cannot continue.

    Args:
        padding: the id of the padding token.
    """
    if device.type != "cpu":
        return None
    if not type(model).__module__.startswith(("transformers.", "finetune.")):
        return None  # code that comes with a checkpoint may use the table in other ways
    module = model.get_input_embeddings()
    if type(module) is not nn.Embedding or not module.weight.requires_grad or module.max_norm is not None:
        return None
    num_uses = sum(weight is module.weight for _, weight in model.named_parameters(remove_duplicate=False))
    if num_uses > 1 or module.sparse or module.scale_grad_by_freq or split.states is not None:
        return None
    occurs = torch.zeros(module.num_embeddings, dtype=torch.bool)
    for token in {padding, module.padding_idx} - {None}:  # some models pad again, with an id of their config
        occurs[token] = True
    for table in split.rows.select_columns("input_ids").with_format("arrow").iter(batch_size=_ROWS_PER_READ):
        for chunk in table.column("input_ids").chunks:
            occurs[torch.from_numpy(chunk.flatten().to_numpy(zero_copy_only=False).copy())] = True
    return EmbeddingSubset(module, occurs.nonzero()[:, 0], device)
