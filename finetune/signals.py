"""Handling of SIGINT and SIGTERM.

During training, a signal stops the run after the current step, and a checkpoint is saved. At any other time, it stops
the command immediately, without a traceback. The exit code follows the shell's convention, 128 + signal number: 130 for
SIGINT, 143 for SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers forward a signal that the terminal has already sent to every process: the second copy is ignored.
_DUPLICATE_SECONDS = 1.0


class Interrupted(BaseException):
    """The command was stopped by a signal.

    Derived from BaseException, like KeyboardInterrupt, so that no `except Exception` handles it as an error.
    """

    def __init__(self, number: int, detail: str = "") -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}{detail}")

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process that this signal stopped."""
        return 128 + self.number


class StopRequest:
    """A signal handler that stores the number of the first signal it receives, 0 before that.

    The first signal calls `on_first` with its number. A second one ends the process.
    """

    def __init__(self, on_first: Callable[[int], None]) -> None:
        self.number = 0
        self._on_first, self._received_at = on_first, 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; the arguments are those of a Python signal handler."""
        if not self.number:
            self.number, self._received_at = number, time.monotonic()
            self._on_first(number)
        elif time.monotonic() - self._received_at > _DUPLICATE_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_immediately() -> Iterator[None]:
    """Raise Interrupted as soon as a signal is received in the block."""

    def stop(number: int) -> None:
        raise Interrupted(number)

    with _handlers(StopRequest(stop)):
        yield


@contextmanager
def exit_immediately() -> Iterator[None]:
    """End the process as soon as a signal is received in the block, which must only import libraries.

    An exception in the middle of the initialization of a C++ library would abort the process with a stack trace.
    """

    def stop(number: int) -> None:
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    with _handlers(StopRequest(stop)):
        yield


@contextmanager
def stop_after_step(*, is_main_process: bool) -> Iterator[StopRequest]:
    """Yield a StopRequest that records a signal in the block; training checks it after each step.

    Args:
        is_main_process: whether this process prints that the signal was received.
    """

    def report(number: int) -> None:
        if is_main_process:  # os.write, because the signal can arrive in the middle of a print
            text = (
                f"\n{signal.Signals(number).name}: finishing the step and saving; a second signal stops immediately\n"
            )
            os.write(2, text.encode())

    request = StopRequest(report)
    with _handlers(request):
        yield request


@contextmanager
def _handlers(request: StopRequest) -> Iterator[None]:
    """Install `request` as the handler of SIGNALS in the block, and restore the previous handlers after it."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    previous = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
