"""Pooling of the logits of windows inside the model, for training, scoring and head analysis.

A batch of windows has one more model input, the number of windows of each row (see data/windows.py). Hooks on the model
remove it before the forward pass, and afterwards replace the logits (W, C) of the windows by those of the rows (B, C).

    B rows, W windows of all rows, C labels
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from finetune.data.windows import WINDOW_COUNTS, pool_windows

_POOLING, _COUNTS = "_window_pooling", "_window_counts"  # attributes of a model with hooks


def add_window_pooling(model: nn.Module, pooling: str) -> None:
    """Let the model pool the logits of windows from now on, if a batch has several windows for a row.

    Args:
        model: a transformers classifier, or the peft model around one. It gets its hooks only once.
        pooling: mean or max.
    """
    if _POOLING not in vars(model):
        model.register_forward_pre_hook(_take_counts, with_kwargs=True)
        model.register_forward_hook(_pool_logits)
    setattr(model, _POOLING, pooling)


def current_window_counts(model: nn.Module) -> Tensor | None:
    """Return the number of windows of each row in the forward pass that is running, (B,); None: one each."""
    counts: Tensor | None = vars(model).get(_COUNTS)
    return counts


def _take_counts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    setattr(module, _COUNTS, kwargs.pop(WINDOW_COUNTS, None))
    return args, kwargs


def _pool_logits(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    counts = current_window_counts(module)
    setattr(module, _COUNTS, None)
    if counts is not None:
        output.logits = pool_windows(output.logits, counts, getattr(module, _POOLING))
    return output
