"""Train the embeddings of those words that the training rows hold.

Most words of a vocabulary are in no row of a data set: their gradient is zero. A gradient for all of them, its norm and
AdamW's two moments took a tenth of a step (30,522 words of width 384, batches of 32 rows, two threads, bfloat16).

    V words of the vocabulary, K of them trained, E embedding width
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

_ROWS = 10_000  # read at a time


class TrainedWords:
    """The embeddings of the words to be trained, (K, E), in place of those of all words, (V, E).

    Steps change `rows` alone; the model has them after `write_back`. Other words are only decayed, as by AdamW.

    Attributes:
        ids: the words that are trained, (K,).
        weight: the model's embeddings of all words, (V, E).
        rows: those that are trained, (K, E), to be given to the optimiser instead of `weight`.
    """

    def __init__(self, module: nn.Embedding, ids: Tensor, device: torch.device) -> None:
        """Take the embeddings of these words out of `module`."""
        self.ids, self.weight, self._module = ids.to(device), module.weight, module
        self.rows = nn.Parameter(module.weight.detach().to(device)[self.ids])
        others = torch.ones(module.num_embeddings, dtype=torch.bool, device=device)
        others[self.ids] = False
        self._others = others.nonzero()[:, 0]
        self._others_before = module.weight.detach().to(device)[self._others]
        # Words that are not among them have no place: an index error, and never the embedding of another.
        self._places = torch.full((module.num_embeddings,), len(ids), device=device)
        self._places[self.ids] = torch.arange(len(ids), device=device)
        padding = module.padding_idx
        self._padding = None if padding is None or padding not in ids else int(self._places[padding])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, the model looks words up in `rows`; all of them must be among those that are trained."""
        handle = self._module.register_forward_hook(self._look_up)
        try:
            yield
        finally:
            handle.remove()

    def _look_up(self, module: nn.Module, args: tuple[Any, ...], found: Tensor) -> Tensor:
        return F.embedding(self._places[args[0]], self.rows, self._padding)

    @torch.no_grad()
    def write_back(self, undecayed: float) -> None:
        """Put what was trained into the model.

        Args:
            undecayed: the share of the other words' embeddings, as they were given here, that decay has left.
        """
        self.weight[self.ids] = self.rows
        self.weight[self._others] = self._others_before * undecayed  # from what was: however often, the same bits

    @torch.no_grad()
    def read_again(self, undecayed: float) -> None:
        """Take the embeddings that the model has by now.

        Raises:
            TrainingError: they do not come from those that were given here.
        """
        if not torch.equal(self.weight[self._others], self._others_before * undecayed):
            raise TrainingError(
                "the checkpoint began with other embeddings than the model that is loaded now; restore the model as it "
                "was, or start again"
            )
        self.rows.copy_(self.weight[self.ids])


def trained_words(
    model: PreTrainedModel, split: EncodedSplit, padding: int | None, device: torch.device
) -> TrainedWords | None:
    """Return the embeddings of the words in `split`; None where they are not trained, or no plain table alone.

    On a CPU only, where the gain was measured, and where a word that is not in the table is an IndexError: on a GPU it
    is a device-side assert, after which the process can do nothing more.

    Args:
        padding: the id that rows are padded with.
    """
    if device.type != "cpu":
        return None
    if not type(model).__module__.startswith(("transformers.", "finetune.")):
        return None  # code that comes with a checkpoint may read the table by other ways
    module = model.get_input_embeddings()
    if type(module) is not nn.Embedding or not module.weight.requires_grad or module.max_norm is not None:
        return None
    uses = sum(weight is module.weight for _, weight in model.named_parameters(remove_duplicate=False))
    if uses > 1 or module.sparse or module.scale_grad_by_freq or split.states is not None:
        return None
    seen = torch.zeros(module.num_embeddings, dtype=torch.bool)
    for word in {padding, module.padding_idx} - {None}:  # some models pad once more, with an id of their own
        seen[word] = True
    for table in split.rows.select_columns("input_ids").with_format("arrow").iter(batch_size=_ROWS):
        for chunk in table.column("input_ids").chunks:
            seen[torch.from_numpy(chunk.flatten().to_numpy(zero_copy_only=False).copy())] = True
    return TrainedWords(module, seen.nonzero()[:, 0], device)
