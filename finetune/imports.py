"""Faster imports of large libraries: without the garbage collector, which finds nothing in them.

Python looks for unreachable cycles each time that enough objects were created. An import creates hundreds of thousands
of objects, all of which stay: a quarter of the time that PyTorch and Transformers need is spent on this search.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused(*, freeze: bool = False) -> Iterator[None]:
    """Inside the context the garbage collector does not run; afterwards it does, unless it was off before.

    Args:
        freeze: never search the objects that exist at the end again. Only for a process of our own: cycles of a
            caller's program that are unreachable by then would stay in memory.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_enabled:
            gc.enable()
