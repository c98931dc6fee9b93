"""What all tests on a GPU share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def reset_accelerator() -> Iterator[None]:
    """Reset Accelerate, which keeps one device per process; the other tests use the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
