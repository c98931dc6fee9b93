"""`FrozenEncoder`: the embeddings and lowest layers of a classifier, which a forward pass can skip.

B batch, S tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.activation_store import FROZEN_STATES
from finetune.errors import ModelError
from finetune.models.architectures import family_of


class _LastFrozenLayerDone(Exception):  # noqa: N818  (not an error: it ends a pass after the last frozen layer)
    def __init__(self, states: object) -> None:
        self.states = states


class FrozenEncoder:
    """The embeddings and the lowest layers of a classifier.

    Inside `replaceable` the model accepts their output as an input named `frozen_states` (B, S, E) and skips them.
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        self.model, self.layers = model, layers
        self._last: nn.Module | None = None  # the highest frozen layer
        self._input_states: Tensor | None = None  # `frozen_states` of the current pass
        self._stop_after_last = False  # whether the current pass ends after the highest frozen layer
        self._tuple_sizes: dict[nn.Module, int] = {}  # number of items that a module returns; 0: a single tensor
        self._embedded = torch.zeros(0)  # (E,): has the width of the embeddings' output

    @contextmanager
    def replaceable(self) -> Iterator[None]:
        """Inside the context the model accepts `frozen_states`; afterwards it is restored."""
        encoder, config = self.model.base_model, self.model.config
        # The first child with an embedding table embeds the words; later ones may also be used by higher layers.
        embeddings = next(c for name, c in encoder.named_children() if name == "embeddings" or _has_embedding(c))
        lower = [encoder.get_submodule(family_of(config).layer_path(config, layer)) for layer in range(self.layers)]
        with ExitStack() as stack:
            stack.callback(self.model.register_forward_pre_hook(self._take_states, with_kwargs=True).remove)
            stack.enter_context(replaced_forward(embeddings, partial(self._embed, embeddings, embeddings.forward)))
            for module in lower:
                stack.enter_context(replaced_forward(module, partial(self._layer, module, module.forward)))
                self._last = module
            yield

    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the output of the highest frozen layer for a batch, (B, S, E).

        Raises:
            ModelError: the layers of this model do not return one state per token.
        """
        self._stop_after_last = True
        try:
            self.model(**inputs)
        except _LastFrozenLayerDone as done:
            states = done.states
            if isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == inputs["input_ids"].shape:
                return states
        finally:
            self._stop_after_last = False
        raise ModelError(cannot_cache_message(self.model, "its layers do not return one state per token"))

    def _take_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._input_states = kwargs.pop(FROZEN_STATES, None)
        return args, kwargs

    def _embed(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._input_states is not None:
            return self._as_returned(module, self._embedded.expand(*self._input_states.shape[:2], -1))  # never read
        result, states = self._record(module, forward(*args, **kwargs))
        self._embedded = states.detach().new_zeros(()).expand(states.shape[-1])
        return result

    def _layer(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._input_states is not None:
            return self._as_returned(module, self._input_states)
        result, states = self._record(module, forward(*args, **kwargs))
        if self._stop_after_last and module is self._last:
            raise _LastFrozenLayerDone(states)
        return result

    def _record(self, module: nn.Module, result: Any) -> tuple[Any, Any]:
        """Record whether a module returns a tuple, and how long; return its result and the states in it."""
        self._tuple_sizes[module] = len(result) if isinstance(result, tuple) else 0
        return result, result[0] if isinstance(result, tuple) else result

    def _as_returned(self, module: nn.Module, states: Tensor) -> Any:
        """Return states as a single tensor or in a tuple, as the module returned its result in the full pass."""
        size = self._tuple_sizes[module]
        return (states, *[None] * (size - 1)) if size else states


def _has_embedding(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Embedding) for part in module.modules())


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the context the module has another forward method."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def cannot_cache_message(model: PreTrainedModel, reason: str) -> str:
    """Return the error message that the frozen layers of this model cannot be cached, and why."""
    return (
        f"training.cache_frozen_layers cannot be used with this '{model.config.model_type}' model: {reason}; "
        "remove the key"
    )
