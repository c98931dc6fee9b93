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
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.batching import load_batches, plan_scoring
from finetune.data.encoding import EncodedSplit
from finetune.data.states import FROZEN_STATES, RowStates
from finetune.errors import ModelError, TrainingError
from finetune.families import family_of
from finetune.modeling import Classifier

_CHECKED = 6  # rows of different length on which logits with and without the cache are compared


class _Reached(Exception):  # noqa: N818  (no error: ends a pass whose upper part is not needed)
    def __init__(self, states: object) -> None:
        self.states = states


class FrozenPart:
    """Embeddings and the lowest layers of a classifier, which it can do without inside `open`."""

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        self.model, self.layers = model, layers
        self._last: nn.Module | None = None  # the highest frozen layer
        self._given: Tensor | None = None  # what takes the place of this pass's lower part
        self._wanted = False  # whether this pass ends above the lower part
        self._form: dict[nn.Module, int] = {}  # how many items a module returns; 0: the states alone
        self._embedded = torch.zeros(0)  # as wide as what the embeddings return

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the model take `frozen_states` (B, S, E); afterwards it is as it was."""
        encoder, config = self.model.base_model, self.model.config
        # That of the words comes first; others may serve the layers above too.
        embeddings = [child for name, child in encoder.named_children() if name == "embeddings" or _has_table(child)][
            :1
        ]
        lower = [encoder.get_submodule(family_of(config).path(config, layer)) for layer in range(self.layers)]
        with ExitStack() as stack:
            stack.callback(self.model.register_forward_pre_hook(self._take, with_kwargs=True).remove)
            for module in embeddings:
                stack.enter_context(other_forward(module, partial(self._embed, module, module.forward)))
            for module in lower:
                stack.enter_context(other_forward(module, partial(self._layer, module, module.forward)))
                self._last = module
            yield

    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the lower part makes of a batch, (B, S, E).

        Raises:
            ModelError: the layers of this model do not return states in this form.
        """
        self._wanted = True
        try:
            self.model(**inputs)
        except _Reached as reached:
            states = reached.states
            if isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == inputs["input_ids"].shape:
                return states
        finally:
            self._wanted = False
        raise ModelError(_refusal(self.model, "its layers do not hand on one state a token"))

    def _take(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._given = kwargs.pop(FROZEN_STATES, None)
        return args, kwargs

    def _embed(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._given is not None:
            return self._in_form(module, self._embedded.expand(*self._given.shape[:2], -1))  # nobody looks at them
        result, states = self._noted(module, forward(*args, **kwargs))
        self._embedded = states.detach().new_zeros(()).expand(states.shape[-1])
        return result

    def _layer(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._given is not None:
            return self._in_form(module, self._given)
        result, states = self._noted(module, forward(*args, **kwargs))
        if self._wanted and module is self._last:
            raise _Reached(states)
        return result

    def _noted(self, module: nn.Module, result: Any) -> tuple[Any, Any]:
        """Return what a module returns, and the states in it."""
        self._form[module] = len(result) if isinstance(result, tuple) else 0
        return result, result[0] if isinstance(result, tuple) else result

    def _in_form(self, module: nn.Module, states: Tensor) -> Any:
        return (states, *[None] * (self._form[module] - 1)) if self._form[module] else states


def _has_table(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Embedding) for part in module.modules())


@contextmanager
def other_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _refusal(model: PreTrainedModel, reason: str) -> str:
    return (
        f"training.cache_frozen_layers cannot be used with this '{model.config.model_type}' model: {reason}; "
        "remove the key"
    )


def check(part: FrozenPart, classifier: Classifier, split: EncodedSplit, device: torch.device) -> None:
    """Raise ModelError unless the lower part is frozen, and the logits of a few rows are the same without it.

    The rows differ in length and their states are computed one by one, so that a model in which padding changes what
    real tokens become does not pass. Float32 leaves 1e-4 of the largest logit (measured over all families: 2e-6),
    lower precisions 3e-2.
    """
    rows = np.argsort(split.lengths, kind="stable")[np.linspace(0, len(split) - 1, _CHECKED).round().astype(int)]
    lengths = split.lengths[rows]
    few = replace(split, rows=split.rows.select(rows), labels=split.labels[rows], lengths=lengths)
    (batch,) = load_batches(few, [np.arange(_CHECKED)], classifier.tokenizer, device=device)
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
            raise ModelError(_refusal(part.model, f"it needs its lower layers' own results ({error})")) from error
    difference = float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))
    if not difference <= (1e-4 if first.dtype == torch.float32 else 3e-2):
        raise ModelError(_refusal(part.model, f"its logits differ by {difference:.1g} without the lower part"))


def _refuse_trained(part: FrozenPart, states: Tensor) -> None:
    if states.requires_grad:
        named = [(name, p) for name, p in part.model.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(states.sum(), [p for _, p in named], allow_unused=True)
        below = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None]
        raise ModelError(_refusal(part.model, f"{', '.join(below[:3])} is trained, and its frozen layers use it"))


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
