"""`PaddingFree`: a classifier whose encoder layers compute only real tokens (recipe key `training.padding_free`).

The embeddings run on the padded batch. The first layer then gets the real tokens of all rows as one sequence
(packing.py). After the last layer the states are in their places in the padded batch again, with zeros at padding.
The classification head, pooling, windows, gates and the objective see what they see without it.

Whether a model allows this is tried out on it, not derived from its type: see padding_free_trial.py.

    B rows, S tokens of the padded batch, T real tokens, E hidden size
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.frozen_encoder import replaced_forward
from finetune.models.packing import (
    PACKED_ATTENTION,
    Packing,
    current_packing,
    packing_of,
    packing_of_lengths,
    register_attention,
    set_packing,
)

ROW_LENGTHS = "row_lengths"  # a model input: number of tokens of each row, (B,), on the CPU
_POSITIONS = "position_embeddings"  # an argument of layers with values for each token in addition to the states


@dataclass(frozen=True)
class Form:
    """In which form a model computes only real tokens.

    Attributes:
        padded_attention: whether attention modules, with their projections of queries, keys and values, get padded
            states. If not, the model uses attention functions of transformers, and only these get padded tensors.
        keep_all: whether the last layer computes all tokens also under `first_token_only`.
        flash: whether attention may use the flash kernel for rows of different lengths.
    """

    padded_attention: bool = False
    keep_all: bool = False
    flash: bool = False


class PaddingFree:
    """The encoder layers of a classifier, which compute only real tokens inside `in_use`.

    Attributes:
        form: in which form.
        packed_calls: how many layers have computed a packed batch.
    """

    def __init__(self, base: PreTrainedModel, form: Form, *, first: int = 0, left: bool = False) -> None:
        """Nothing is changed before `in_use`.

        Args:
            base: the transformers model, with its adapters in place (`Classifier.base`).
            first: number of the lowest layer that computes; lower ones return cached states of padded batches.
            left: whether batches are padded before the tokens of a row.
        """
        self.base, self.form, self.left = base, form, left
        config, family = base.config, family_of(base.config)
        paths = [family.layer_path(config, layer) for layer in range(first, family.num_layers(config))]
        self._layers = {path: base.base_model.get_submodule(path) for path in paths}
        self._order, self._uses = paths, Counter(paths)
        self._parameters = {path: _parameters(layer) for path, layer in self._layers.items()}
        modules = dict(base.base_model.named_modules())
        attentions = [modules.get(f"{path}.{family.query.rpartition('.')[0]}") for path in self._layers]
        self._attentions = [module for module in attentions if module is not None] if form.padded_attention else []
        self._next = 0  # index in the order of layers of the next call of a layer that is used several times
        self._lengths: Tensor | None = None
        self._positions: dict[int, tuple[Any, Any]] = {}  # packed positions of the current batch, by id
        self.packed_calls = 0

    @contextmanager
    def in_use(self, lengths: Tensor | None = None) -> Iterator[None]:
        """Inside the context the layers compute only real tokens; afterwards the model is restored.

        Args:
            lengths: number of tokens of each row, (B,), on the CPU; None: they are read from the attention mask, for
                which a GPU has to finish its work first.
        """
        encoder = self.base.base_model
        self._lengths = lengths
        with ExitStack() as stack:
            stack.callback(encoder.register_forward_pre_hook(self._start, with_kwargs=True).remove)
            stack.enter_context(self._layers_packed(None))
            yield

    def recomputed(self) -> AbstractContextManager[None]:
        """Return the context in which layers of the current batch can be computed again, in the backward pass."""
        return self._layers_packed(current_packing(self.base))

    @contextmanager
    def _layers_packed(self, packing: Packing | None) -> Iterator[None]:
        config = self.base.config
        before = config._attn_implementation
        register_attention()
        with ExitStack() as stack:
            stack.callback(self._positions.clear)
            stack.callback(set_packing, self.base, None)
            set_packing(self.base, packing)
            if not self.form.padded_attention:
                stack.callback(setattr, config, "_attn_implementation", before)
                config._attn_implementation = PACKED_ATTENTION
            for module in self._attentions:
                stack.enter_context(replaced_forward(module, partial(self._padded_attention, module.forward)))
            for path, layer in self._layers.items():
                stack.enter_context(_replaced_call(layer, partial(self._call, path)))
            yield

    def _start(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Find out where the real tokens of the batch are, before the encoder runs."""
        arguments = inspect.signature(encoder.forward).bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        mask, self._next, packing = arguments.get("attention_mask"), 0, None
        self._positions.clear()
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if self._lengths is None:
                packing = packing_of(mask)
            elif len(self._lengths) == len(mask):
                packing = packing_of_lengths(self._lengths, mask.shape[1], mask.device, left=self.left)
                if packing is None and int(self._lengths.min()) == mask.shape[1] and not self.form.padded_attention:
                    arguments["attention_mask"] = None  # nothing is padding
        if packing is not None:
            packing = packing._replace(flash=self.form.flash, keep_all=self.form.keep_all)
        set_packing(self.base, packing)
        return (), arguments

    def _call(self, path: str, layer: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a layer on the packed batch; pack the states before the first layer, unpack them after the last."""
        packing = current_packing(self.base)
        if packing is None:
            return call(*args, **kwargs)
        index = self._order.index(path) if self._uses[path] == 1 else self._next
        self._next = index + 1
        names = self._parameters[path]
        arguments: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        states, mask = names[0], arguments.get("attention_mask")
        if "attention_mask" not in names:
            raise ModelError("they take no attention_mask")
        if index == 0:
            arguments[states] = packing.pack(arguments[states])
        arguments["attention_mask"] = packing._replace(mask=mask)
        if arguments.get(_POSITIONS) is not None:
            arguments[_POSITIONS] = self._packed_positions(arguments[_POSITIONS], packing)
        self.packed_calls += 1
        result = call(arguments.pop(states), **arguments)
        return result if self._next < len(self._order) else _unpacked(result, packing)

    def _packed_positions(self, positions: Any, packing: Packing) -> Any:
        """Return position embeddings (1 or B, S, ...) for the packed tokens, once per batch."""
        if id(positions) not in self._positions:
            parts = positions if isinstance(positions, tuple) else (positions,)
            packed = tuple(packing.pack(part.expand(packing.rows, *part.shape[1:])) for part in parts)
            self._positions[id(positions)] = (positions, packed if isinstance(positions, tuple) else packed[0])
        return self._positions[id(positions)][1]

    def _padded_attention(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the forward method of an attention module on padded states, and pack its result."""
        packing = current_packing(self.base)
        if packing is None:
            return forward(*args, **kwargs)
        others = [value.mask if isinstance(value, Packing) else value for value in args[1:]]
        named = {name: value.mask if isinstance(value, Packing) else value for name, value in kwargs.items()}
        result = forward(packing.unpack(args[0]), *others, **named)
        return (packing.pack(result[0]), *result[1:]) if isinstance(result, tuple) else packing.pack(result)


def _parameters(layer: nn.Module) -> list[str]:
    """Return the names of the parameters of a layer's forward method."""
    return list(inspect.signature(type(layer).forward).parameters)[1:]


def _unpacked(result: Any, packing: Packing) -> Any:
    """Return the last layer's result with the states in the padded batch, (B, S, E).

    If the layer kept only the first token of each row (`first_token_only`), they are (B, 1, E).
    """
    states, *rest = result if isinstance(result, tuple) else (result,)
    only_first = states.shape[1] == packing.rows < len(packing.tokens)
    padded = states.transpose(0, 1) if only_first else packing.unpack(states)
    return (padded, *rest) if isinstance(result, tuple) else padded


@contextmanager
def _replaced_call(layer: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Inside the context, calls of the layer go to `call(layer, original call, ...)`.

    It is outside of the layer's hooks and of its compiled code.
    """
    before = layer._compiled_call_impl
    layer._compiled_call_impl = partial(call, layer, before or layer._call_impl)
    try:
        yield
    finally:
        layer._compiled_call_impl = before
