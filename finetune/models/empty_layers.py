"""What remains of an attention without heads and of a feed-forward network without neurons: the output bias.

The modules stay where they are, with tensors of size 0: stock transformers then refuses the checkpoint, and does not
initialize missing weights. Only their class changes, to a subclass whose forward pass skips the matrix products.

    B batch, S tokens, E hidden size
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.models.architectures import FAMILIES, family_of


def skip_attention(model: PreTrainedModel, attention: str, output: str) -> None:
    """Skip an attention module without heads.

    Args:
        attention: path of the module with the query projection.
        output: path of its output projection, inside that module or elsewhere.
    """
    own_output = output.removeprefix(f"{attention}.") if output.startswith(f"{attention}.") else ""
    module = model.get_submodule(attention)
    module.__class__ = _skipped_attention(_unpruned_class(module), own_output, model.config.model_type)
    skip_projections(model, output)


def skip_projections(model: PreTrainedModel, *paths: str, parts: int = 1) -> None:
    """Skip the matrix products of projections without inputs or without outputs.

    Args:
        parts: into how many parts the output of a projection is split afterwards.
    """
    for path in paths:
        module = model.get_submodule(path)
        pairs = family_of(model.config).returns_scales
        module.__class__ = _skipped_projection(_unpruned_class(module), parts, pairs)


def restore_class(model: nn.Module, *paths: str) -> None:
    """Give modules the class that they had before they were skipped."""
    for path in paths:
        module = model.get_submodule(path)
        module.__class__ = _unpruned_class(module)


def _unpruned_class(module: nn.Module) -> Any:
    return getattr(type(module), "unpruned_class", type(module))


@cache
def _skipped_attention(attention_class: Any, output: str, model_type: str) -> type[nn.Module]:
    """Return the subclass that returns the output bias, or no states for an output projection elsewhere."""
    family = FAMILIES[model_type]

    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = hidden_states.new_empty(*hidden_states.shape[:-1], 0)
        if output:
            result = family.after_output(self, hidden_states, self.get_submodule(output)(result))
        tokens = hidden_states.shape[-2]
        weights = hidden_states.new_empty(*hidden_states.shape[:-2], 0, tokens, tokens)  # (B, 0, S, S)
        return ((result, weights), (None, None)) if family.returns_scales else (result, weights)

    return _subclass(attention_class, forward)


@cache
def _skipped_projection(projection_class: Any, parts: int, pairs: bool) -> type[nn.Module]:
    """Return the subclass that returns its bias, or a zero per part if it has no outputs: some modules that follow
    cannot process empty tensors."""

    def forward(self: Any, states: Tensor, *args: Any) -> Any:
        shape = states.shape[:-1]
        if self.out_features == 0:
            result = states.new_zeros(*shape, parts)
        elif self.bias is None:
            result = states.new_zeros(*shape, self.out_features)
        else:
            result = self.bias.expand(*shape, self.out_features)
        return (result, None) if pairs else result

    return _subclass(projection_class, forward)


def _subclass(module_class: type[nn.Module], forward: Any) -> type[nn.Module]:
    """Return a subclass with another forward pass and the same name, by which FSDP and transformers look up classes."""
    names = {"__module__": module_class.__module__, "__qualname__": module_class.__qualname__}
    return type(module_class.__name__, (module_class,), {"forward": forward, "unpruned_class": module_class, **names})
