"""Which weights are trained, and in what precision; and a model without the part that is not trained.

B batch, S tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.states import FROZEN_STATES
from finetune.errors import ModelError
from finetune.families import attention_sites, family_of

# Model type -> what makes of the embeddings what the layers get, outside the embeddings themselves: a projection to the
# hidden size, or a norm. Some configs have none.
_BEHIND_EMBEDDINGS = {
    "albert": "encoder.embedding_hidden_mapping_in",
    "convbert": "embeddings_project",
    "deberta-v2": "encoder.LayerNorm",  # of the relative positions
    "electra": "embeddings_project",
    "flaubert": "layer_norm_emb",
    "rembert": "encoder.embedding_hidden_mapping_in",
    "roformer": "embeddings_project",
    "xlm": "layer_norm_emb",
}


def freeze(model: PreTrainedModel, *, freeze_embeddings: bool, freeze_layers: int) -> None:
    """Stop the training of the embeddings, with their norm and projection, and of the lowest `freeze_layers` layers.

    Raises:
        ModelError: there are not so many layers, or layers share their weights.
    """
    sites = attention_sites(model)
    if freeze_layers > len(sites) or (freeze_layers and len({site.output for site in sites}) < len(sites)):
        raise ModelError(
            f"training.freeze_layers is {freeze_layers}, but a '{model.config.model_type}' model has {len(sites)} "
            "layers here, or shares weights between them; lower it"
        )
    encoder = model.base_model
    if freeze_embeddings:
        whole = {"embeddings", _BEHIND_EMBEDDINGS.get(model.config.model_type)}
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Embedding) or name in whole:
                module.requires_grad_(False)
    for module in encoder.modules():
        # Every list with an item for each layer: XLM keeps attention, norms and feed-forward in lists of their own.
        if isinstance(module, nn.ModuleList) and len(module) == len(sites):
            for layer in module[:freeze_layers]:
                layer.requires_grad_(False)


def keep_float32(model: PreTrainedModel, modules: Sequence[str]) -> None:
    """Hold these modules in float32 inside a model of lower precision, and cast what comes in.

    They are trained: in bfloat16 most updates would be smaller than the rounding of the weight they are added to.
    """
    for name in modules:
        module = model.get_submodule(name)
        if any(p.dtype != torch.float32 for p in module.parameters()):
            module.float().register_forward_pre_hook(_to_float32)


def hold_in_one_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Undo `keep_float32`: round those modules to `dtype`, as a checkpoint of that dtype is read back."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _to_float32:
                del module._forward_pre_hooks[key]
                module.to(dtype)


def _to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


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
