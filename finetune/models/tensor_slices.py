"""Slices of tensors that belong to heads or neurons: remove the others, or put the slices back among zeros."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class TensorSlice:
    """Rows or columns of a parameter or buffer.

    Attributes:
        path: of the module.
        name: of its tensor.
        dim: along which the indices count.
        indices: of the rows or columns.
    """

    path: str
    name: str
    dim: int
    indices: Sequence[int]


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters and buffers of a module itself, by name."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def rows_of(model: nn.Module, path: str, indices: Sequence[int]) -> list[TensorSlice]:
    """Return these rows of all tensors of a module: weight and bias; I-BERT also has a scale per row."""
    return [TensorSlice(path, name, 0, indices) for name, _ in tensors_of(model.get_submodule(path))]


def columns_of(model: nn.Module, path: str, indices: Sequence[int]) -> list[TensorSlice]:
    """Return these columns of all matrices of a module."""
    tensors = tensors_of(model.get_submodule(path))
    return [TensorSlice(path, name, 1, indices) for name, tensor in tensors if tensor.dim() == 2]


def keep(model: nn.Module, slices: Iterable[TensorSlice]) -> None:
    """Remove all but these slices from their tensors, in place.

    Parameters stay parameters unless they become empty: an empty tensor has no gradient, so it becomes a buffer.
    """
    for part in slices:
        module = model.get_submodule(part.path)
        tensor = getattr(module, part.name).detach()
        _replace(module, part.name, tensor[(slice(None),) * part.dim + (list(part.indices),)].contiguous())


def pad_with_zeros(model: nn.Module, slices: Iterable[TensorSlice], full: nn.Module) -> None:
    """Put tensors back into the shapes of the unpruned model `full`, in place, with zeros outside these slices."""
    for part in slices:
        module, unpruned = (root.get_submodule(part.path) for root in (model, full))
        like = getattr(unpruned, part.name)
        tensor = getattr(module, part.name).detach()
        padded = tensor.new_zeros(like.shape)
        padded[(slice(None),) * part.dim + (list(part.indices),)] = tensor
        _replace(module, part.name, padded, unpruned=like)


def _replace(module: Any, name: str, tensor: Tensor, unpruned: Tensor | None = None) -> None:
    """Replace a parameter or buffer, and update the sizes that a linear layer stores."""
    old = getattr(module, name)
    is_parameter = isinstance(old if unpruned is None else unpruned, nn.Parameter) and tensor.numel() > 0
    if is_parameter != isinstance(old, nn.Parameter):
        delattr(module, name)
    if is_parameter:
        requires_grad = old.requires_grad if isinstance(old, nn.Parameter) else True
        setattr(module, name, nn.Parameter(tensor, requires_grad))
    else:
        module.register_buffer(name, tensor)
    if name == "weight":
        module.out_features, module.in_features = tensor.shape
