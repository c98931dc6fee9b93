"""A model without the part that is not trained: embeddings and the lowest layers, left out of a pass.

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
        raise ModelError(cache_refusal(self.model, "its layers do not hand on one state a token"))

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


def cache_refusal(model: PreTrainedModel, reason: str) -> str:
    """Return the message that a model cannot do without its frozen part, and why."""
    return (
        f"training.cache_frozen_layers cannot be used with this '{model.config.model_type}' model: {reason}; "
        "remove the key"
    )
