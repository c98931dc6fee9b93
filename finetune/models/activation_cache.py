"""The frozen lower part of a model, computed once: `training.cache_frozen_layers`.

With embeddings and the lowest k layers frozen, layer k - 1 puts out the same in every epoch. That is computed once,
without dropout, for each row of a split, and lies in a file; the batches of such a split carry it as one more input,
`frozen_states`. A model inside `FrozenPart.open` takes it: embeddings and lower layers then hand it on instead of
computing anything. Names of weights do not change, and without that input the model runs whole.

Whether a model allows this is not concluded from its type: `check` tries it.

    N rows, B batch, S tokens, E hidden size, C classes
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from finetune.data.activation_store import RowStates
from finetune.data.batching import load_batches, plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError, TrainingError
from finetune.models.classifier import Classifier
from finetune.models.frozen_encoder import FrozenPart, cache_refusal
from finetune.models.precision import attention_in_any_precision

_CHECKED = 6  # rows of different length on which logits with and without the cache are compared


def check(part: FrozenPart, classifier: Classifier, split: EncodedSplit, device: torch.device) -> None:
    """Raise ModelError unless the lower part is frozen, and the logits of a few rows are the same without it.

    The rows differ in length and their states are computed one by one, so that a model in which padding changes what
    real tokens become does not pass. Weights in float32 leave 1e-4 of the largest logit (measured over all families:
    2e-6), those of a lower precision 3e-2. Call it without autocast, whose rounding is neither.
    """
    rows = np.argsort(split.lengths, kind="stable")[np.linspace(0, len(split) - 1, _CHECKED).round().astype(int)]
    lengths = split.lengths[rows]
    few = replace(split, rows=split.rows.select(rows), labels=split.labels[rows], lengths=lengths)
    (batch,) = load_batches(few, [np.arange(_CHECKED)], classifier.tokenizer, device=device)
    lowest = min(torch.finfo(p.dtype).bits for p in part.model.parameters() if p.is_floating_point())
    with torch.enable_grad():
        _refuse_trained(part, part.states(batch.inputs))
    with torch.no_grad():
        expected = part.model(**batch.inputs).logits.float()
        first = part.states(batch.inputs)
        store = _row_states(io.BytesIO(), lengths, first, classifier)
        _fill(part, replace(few, states=None), store, [np.array([row]) for row in range(_CHECKED)], classifier, device)
        (cached,) = load_batches(replace(few, states=store), [np.arange(_CHECKED)], classifier.tokenizer, device=device)
        try:
            found = part.model(**cached.inputs).logits.float()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(cache_refusal(part.model, f"it needs its lower layers' own results ({error})")) from error
    difference = float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))
    if not difference <= (1e-4 if lowest >= 32 else 3e-2):
        raise ModelError(cache_refusal(part.model, f"its logits differ by {difference:.1g} without the lower part"))


def _refuse_trained(part: FrozenPart, states: Tensor) -> None:
    if states.requires_grad:
        named = [(name, p) for name, p in part.model.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(states.sum(), [p for _, p in named], allow_unused=True)
        below = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None]
        raise ModelError(cache_refusal(part.model, f"{', '.join(below[:3])} is trained, and its frozen layers use it"))


def _row_states(file: BinaryIO, lengths: np.ndarray, like: Tensor, classifier: Classifier, start: int = 0) -> RowStates:
    starts = start + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return RowStates(file, starts, like.shape[-1], like.dtype, classifier.tokenizer.padding_side == "left")


def _fill(
    part: FrozenPart,
    split: EncodedSplit,
    store: RowStates,
    batches: list[np.ndarray],
    classifier: Classifier,
    device: torch.device,
) -> None:
    loaded = load_batches(split, batches, classifier.tokenizer, device=device)
    for rows, batch in zip(batches, loaded, strict=True):
        store.write(rows, part.states(batch.inputs))
    store.file.flush()


@contextmanager
def cached_frozen_layers(
    classifier: Classifier,
    splits: Mapping[str, EncodedSplit],
    layers: int,
    *,
    batch_size: int,
    accelerator: Accelerator,
    tell: Callable[[str], None],
    write: bool = True,
) -> Iterator[dict[str, EncodedSplit]]:
    """Compute what the frozen part makes of all rows; yield the splits with it, and a model that takes it.

    Args:
        splits: those that are put to the model again and again.
        layers: the lowest layers that are frozen, besides the embeddings.
        batch_size: rows that are computed at once.
        tell: gets one line for the user.
        write: False: check and tell only.

    Raises:
        ModelError: the model does not allow it.
        TrainingError: the disk has not enough room, or cannot be written.
    """
    model, device = classifier.base, accelerator.device
    part, first = FrozenPart(model, layers), next(iter(splits.values()))
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.to(device).eval()
        stack.enter_context(part.open())
        with torch.autocast(device.type, enabled=False), attention_in_any_precision(model):
            check(part, classifier, first, device)
        with torch.no_grad(), accelerator.autocast():
            (batch,) = load_batches(first, [np.array([0])], classifier.tokenizer, device=device)
            like = part.states(batch.inputs)
            rows, tokens = (
                sum(n) for n in zip(*((len(s), int(s.lengths.sum())) for s in splits.values()), strict=True)
            )
            size = tokens * like.shape[-1] * like.element_size()
            tell(
                f"Cache of the {layers} frozen layers: {rows:,} rows of {tokens / rows:.1f} tokens on average x "
                f"{like.shape[-1]} x {like.element_size()} bytes = {size / 1e6:,.1f} MB in {tempfile.gettempdir()}, "
                "gone when training ends."
            )
            if write:
                shared = stack.enter_context(_shared_file(size, accelerator))
                splits = _computed(part, classifier, splits, like, shared, batch_size, device)
        yield dict(splits)


def _computed(
    part: FrozenPart,
    classifier: Classifier,
    splits: Mapping[str, EncodedSplit],
    like: Tensor,
    shared: tuple[BinaryIO, int, int],
    batch_size: int,
    device: torch.device,
) -> dict[str, EncodedSplit]:
    (file, own, sharing), start, found, failed = shared, 0, {}, ""
    try:
        for name, split in splits.items():
            store = _row_states(file, split.lengths, like, classifier, start)
            batches = plan_scoring(split.lengths, batch_size)[own::sharing]
            _fill(part, split, store, batches, classifier, device)
            start, found[name] = int(store.starts[-1]), replace(split, states=store)
    except OSError as error:
        failed = f"the cache of frozen layers cannot be written: {error}; {_OTHER_DISK}"
    _agree(failed)
    return found


_OTHER_DISK = "set TMPDIR to a folder on a disk with more room, or remove training.cache_frozen_layers"


def _agree(failed: str) -> None:
    """Raise TrainingError on all processes if one failed: the others would wait for it."""
    for message in gather_object([failed]):
        if message:
            raise TrainingError(message)


@contextmanager
def _shared_file(size: int, accelerator: Accelerator) -> Iterator[tuple[BinaryIO, int, int]]:
    """Yield a file that the processes of one machine share, which of them this one is, and how many they are.

    It loses its name before anything is written, so that it is gone with the processes, however they end.
    """
    path, failed = "", ""
    if accelerator.is_local_main_process:
        try:
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if free < size:
                failed = f"the cache of frozen layers takes {size / 1e6:,.1f} MB, but {folder} has {free / 1e6:,.1f} MB"
                failed = f"{failed} left; {_OTHER_DISK}"
            else:
                handle, path = tempfile.mkstemp(prefix="finetune-frozen-")
                os.close(handle)
        except OSError as error:
            failed = f"the cache of frozen layers cannot be written: {error}; {_OTHER_DISK}"
    _agree(failed)
    first = accelerator.process_index - accelerator.local_process_index
    here = [other for main, other in gather_object([(first, path)]) if main == first]  # the machine's processes
    with Path(here[0]).open("r+b") as file:
        accelerator.wait_for_everyone()
        if path:
            Path(path).unlink()
        yield file, accelerator.local_process_index, len(here)
