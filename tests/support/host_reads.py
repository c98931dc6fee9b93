"""Counts the reads of tensors by Python, each of which would wait for an accelerator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_METHODS = ("tolist", "numpy", "cpu")
# Operators that read from the device: a number (also `item`, `bool`, `float`), or the shape of their result.
_OPERATORS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim")


class HostReads(TorchFunctionMode):
    """Counts in `counts` the reads inside the context, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._operators = _Operators(self.counts)

    def __enter__(self) -> HostReads:
        self._operators.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._operators.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS or (name == "to" and str(args[1:2]) == "('cpu',)"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Counts the operators that read, also those that run inside others."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _OPERATORS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
