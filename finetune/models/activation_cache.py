"""The output of the frozen layers, computed once (recipe key `training.cache_frozen_layers`).

With embeddings and the lowest k layers frozen, layer k - 1 has the same output in every epoch. It is computed once per
row, without dropout, and written to a file. Batches of a cached split have one more input, `frozen_states`, and a model
inside `FrozenEncoder.replaceable` uses it instead of computing embeddings and lower layers. Weights keep their names,
and without that input the model runs in full.

`check` tests whether a model allows this; it is not derived from the model type.

    B batch, S tokens, E hidden size
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from finetune.data.activation_store import RowStates
from finetune.data.batching import load_batches
from finetune.data.sampler import plan_scoring
from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError, TrainingError
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import scoring_kernels
from finetune.models.frozen_encoder import FrozenEncoder, cannot_cache_message
from finetune.models.precision import without_flash_attention
from finetune.progress import stage

_CHECKED_ROWS = 6  # rows of different lengths whose logits are compared with and without the cache
_FREE_SPACE_FIX = "set TMPDIR to a folder on a disk with more space, or remove training.cache_frozen_layers"


@dataclass(frozen=True)
class CacheSettings:
    """What is cached, and how.

    Attributes:
        layers: number of lowest layers that are frozen, in addition to the embeddings.
        batch_size: rows per forward pass while the cache is filled.
        write: False: check the model and notify the user only.
    """

    layers: int
    batch_size: int
    write: bool = True


@contextmanager
def cached_frozen_layers(
    classifier: Classifier,
    splits: Mapping[str, EncodedSplit],
    settings: CacheSettings,
    *,
    accelerator: Accelerator,
    notify: Callable[[str], None],
) -> Iterator[dict[str, EncodedSplit]]:
    """Compute the frozen layers' output for all rows; yield the splits with it, while the model accepts it.

    Args:
        splits: those that pass through the model several times.
        notify: receives one line for the user.

    Raises:
        ModelError: the model does not allow it.
        TrainingError: the disk has not enough space, or cannot be written.
    """
    model, device = classifier.base, accelerator.device
    encoder, first = FrozenEncoder(model, settings.layers), next(iter(splits.values()))
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.to(device).eval()
        stack.enter_context(encoder.replaceable())
        with torch.autocast(device.type, enabled=False), without_flash_attention(model):
            check(encoder, classifier, first, device)
        with torch.no_grad(), scoring_kernels(model), accelerator.autocast():
            (batch,) = load_batches(first, [np.array([0])], classifier.tokenizer, device=device)
            example = encoder.states(batch.inputs)  # (1, S, E)
            rows = sum(len(split) for split in splits.values())
            tokens = sum(int(split.lengths.sum()) for split in splits.values())
            size = tokens * example.shape[-1] * example.element_size()
            notify(
                f"Cache of the {settings.layers} frozen layers: {rows:,} rows of {tokens / rows:.1f} tokens on average "
                f"x {example.shape[-1]} x {example.element_size()} bytes = {size / 1e6:,.1f} MB in "
                f"{tempfile.gettempdir()}, deleted when training ends."
            )
            if settings.write:
                file = stack.enter_context(_shared_file(size, accelerator))
                splits = _compute_states(encoder, classifier, splits, example, file, settings.batch_size)
        yield dict(splits)


def check(encoder: FrozenEncoder, classifier: Classifier, split: EncodedSplit, device: torch.device) -> None:
    """Raise ModelError unless the lower part is frozen and a few rows have the same logits with the cache.

    The rows differ in length and their states are computed one by one, so that a model in which padding affects real
    tokens is detected. The tolerance is 1e-4 of the largest logit for float32 weights (measured over all families:
    2e-6) and 3e-2 for lower precision. Call it without autocast, which rounds differently.
    """
    rows = np.argsort(split.lengths, kind="stable")[np.linspace(0, len(split) - 1, _CHECKED_ROWS).round().astype(int)]
    lengths = split.lengths[rows]
    sample = replace(split, rows=split.rows.select(rows), labels=split.labels[rows], lengths=lengths)
    (batch,) = load_batches(sample, [np.arange(_CHECKED_ROWS)], classifier.tokenizer, device=device)
    lowest_bits = min(torch.finfo(p.dtype).bits for p in encoder.model.parameters() if p.is_floating_point())
    with torch.enable_grad():
        _check_frozen(encoder, encoder.states(batch.inputs))
    with torch.no_grad():
        expected = encoder.model(**batch.inputs).logits.float()
        example = encoder.states(batch.inputs)
        store = _row_states(io.BytesIO(), lengths, example, classifier)
        single_rows = [np.array([row]) for row in range(_CHECKED_ROWS)]
        _fill(encoder, replace(sample, states=None), store, single_rows, classifier, device)
        cached_sample = replace(sample, states=store)
        (cached,) = load_batches(cached_sample, [np.arange(_CHECKED_ROWS)], classifier.tokenizer, device=device)
        try:
            logits = encoder.model(**cached.inputs).logits.float()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                cannot_cache_message(encoder.model, f"it needs its lower layers' own results ({error})")
            ) from error
    difference = float((logits - expected).abs().max() / max(1.0, float(expected.abs().max())))
    if not difference <= (1e-4 if lowest_bits >= 32 else 3e-2):
        raise ModelError(cannot_cache_message(encoder.model, f"its logits differ by {difference:.1g} with the cache"))


def _check_frozen(encoder: FrozenEncoder, states: Tensor) -> None:
    """Raise ModelError if states of the frozen layers depend on a trained parameter."""
    if states.requires_grad:
        trained = [(name, p) for name, p in encoder.model.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(states.sum(), [p for _, p in trained], allow_unused=True)
        used = [name for (name, _), gradient in zip(trained, gradients, strict=True) if gradient is not None]
        raise ModelError(
            cannot_cache_message(encoder.model, f"{', '.join(used[:3])} is trained, and its frozen layers use it")
        )


def _row_states(
    file: BinaryIO, lengths: np.ndarray, example: Tensor, classifier: Classifier, start: int = 0
) -> RowStates:
    """Return an empty store for rows of these lengths, for states of the width and dtype of `example` (B, S, E).

    Args:
        start: number of tokens whose states are already in the file.
    """
    starts = start + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return RowStates(file, starts, example.shape[-1], example.dtype, classifier.tokenizer.padding_side == "left")


def _fill(
    encoder: FrozenEncoder,
    split: EncodedSplit,
    store: RowStates,
    batches: list[np.ndarray],
    classifier: Classifier,
    device: torch.device,
) -> None:
    """Write the states of these batches of rows to the store."""
    loaded = load_batches(split, batches, classifier.tokenizer, device=device)
    with stage("running the frozen layers", total=len(batches)) as running:
        for rows, batch in zip(batches, loaded, strict=True):
            store.write(rows, encoder.states(batch.inputs))
            running.advance()
    store.file.flush()


@dataclass(frozen=True)
class _SharedFile:
    """A file that the processes of one machine share.

    Attributes:
        index: number of this process among them, counted from 0.
        num_processes: number of processes that share the file.
    """

    file: BinaryIO
    index: int
    num_processes: int


def _compute_states(
    encoder: FrozenEncoder,
    classifier: Classifier,
    splits: Mapping[str, EncodedSplit],
    example: Tensor,
    shared: _SharedFile,
    batch_size: int,
) -> dict[str, EncodedSplit]:
    """Return the splits with their states; each process of the machine computes and writes a part of them."""
    start, computed, failure, device = 0, {}, "", example.device
    try:
        for name, split in splits.items():
            store = _row_states(shared.file, split.lengths, example, classifier, start)
            batches = plan_scoring(split.lengths, batch_size)[shared.index :: shared.num_processes]
            _fill(encoder, split, store, batches, classifier, device)
            start, computed[name] = int(store.starts[-1]), replace(split, states=store)
    except OSError as error:
        failure = f"the cache of frozen layers cannot be written: {error}; {_FREE_SPACE_FIX}"
    _raise_on_all_processes(failure)
    return computed


def _raise_on_all_processes(failure: str) -> None:
    """Raise TrainingError on all processes if one of them failed, because the others would wait for it."""
    for message in gather_object([failure]):
        if message:
            raise TrainingError(message)


@contextmanager
def _shared_file(size: int, accelerator: Accelerator) -> Iterator[_SharedFile]:
    """Yield a new file for the processes of one machine.

    Its name is deleted before anything is written, so the file disappears with the processes, however they end.
    """
    path, failure = "", ""
    if accelerator.is_local_main_process:
        try:
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if free < size:
                failure = (
                    f"the cache of frozen layers takes {size / 1e6:,.1f} MB, but {folder} has {free / 1e6:,.1f} MB "
                    f"left; {_FREE_SPACE_FIX}"
                )
            else:
                handle, path = tempfile.mkstemp(prefix="finetune-frozen-")
                os.close(handle)
        except OSError as error:
            failure = f"the cache of frozen layers cannot be written: {error}; {_FREE_SPACE_FIX}"
    _raise_on_all_processes(failure)
    machine = accelerator.process_index - accelerator.local_process_index  # its first process
    paths = [other for first, other in gather_object([(machine, path)]) if first == machine]
    with Path(paths[0]).open("r+b") as file:
        accelerator.wait_for_everyone()
        if path:
            Path(path).unlink()
        yield _SharedFile(file, accelerator.local_process_index, len(paths))
