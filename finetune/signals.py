"""SIGINT and SIGTERM: training finishes its step and saves; everything else stops where it is, without a traceback.

The exit code is that of the shell, 128 and the signal's number: 130 for SIGINT, 143 for SIGTERM.
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
# Launchers hand on a signal that the terminal has already sent to all: one wish, heard twice.
_SAME_WISH_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal ended the work. No Exception, as KeyboardInterrupt is none: nothing below may take it for an error."""

    def __init__(self, number: int, said: str = "") -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}{said}")

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that a signal ended."""
        return 128 + self.number


class StopRequest:
    """The first signal that came, 0 before; `on_first` is called with it, and a second signal ends the process."""

    def __init__(self, on_first: Callable[[int], None]) -> None:
        self.number = 0
        self._on_first, self._heard = on_first, 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if not self.number:
            self.number, self._heard = number, time.monotonic()
            self._on_first(number)
        elif time.monotonic() - self._heard > _SAME_WISH_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_immediately() -> Iterator[None]:
    """Let a signal raise Interrupted wherever the work stands."""

    def stop(number: int) -> None:
        raise Interrupted(number)

    with _heard_by(StopRequest(stop)):
        yield


@contextmanager
def stop_after_step(*, is_main_process: bool) -> Iterator[StopRequest]:
    """Give a request that training looks at after each step; with `is_main_process`, say at once that it was heard."""

    def note(number: int) -> None:
        if is_main_process:  # not print: the signal may have come in the middle of another
            text = f"\n{signal.Signals(number).name}: finishing the step and saving; a second signal stops at once\n"
            os.write(2, text.encode())

    request = StopRequest(note)
    with _heard_by(request):
        yield request


@contextmanager
def _heard_by(request: StopRequest) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
