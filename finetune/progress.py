"""Progress of stages that can take more than a few seconds.

In a terminal each running stage has a bar with the time left. Elsewhere (a log file, a notebook) a plain line is
printed every ten seconds while stages run, even if each stage is shorter. Stages can be nested. Nothing is shown before
`show_progress_on` sets a console, or on a quiet console.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

INTERVAL_SECONDS = 10.0


@dataclass
class Stage:
    """One running stage.

    Attributes:
        description: what is being done, such as "scoring validation".
        total: number of steps; None: unknown.
        done: number of steps done.
        detail: a short text shown next to the steps, such as the current loss.
        already_done: steps done before the stage started, which do not count for the time left.
    """

    description: str
    total: int | None = None
    done: int = 0
    detail: str = ""
    started: float = field(default_factory=time.monotonic)
    already_done: int = 0
    _task: TaskID | None = None

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""
        self.done += steps
        self._update_bar()

    def describe(self, detail: str) -> None:
        """Set the text next to the steps, such as the current loss."""
        self.detail = detail
        self._update_bar()

    def line(self, now: float) -> str:
        """Return the stage as plain text, such as "scoring: 320 of 1000 (32 %), 41 s left"."""
        steps = ""
        if self.total is not None:
            steps = f": {self.done} of {self.total} ({100 * self.done / max(self.total, 1):.0f} %)"
        detail = f", {self.detail}" if self.detail else ""
        return f"{self.description}{steps}{detail}, {self._time_text(now)}"

    def _time_text(self, now: float) -> str:
        """Return the time left, or the time so far if the time left cannot be estimated."""
        new_steps = self.done - self.already_done
        if self.total is None or new_steps <= 0:
            return f"{format_duration(now - self.started)} so far"
        return f"{format_duration((now - self.started) / new_steps * (self.total - self.done))} left"

    def _update_bar(self) -> None:
        if self._task is not None and _display.bars is not None:
            _display.bars.update(self._task, completed=self.done, detail=self.detail)


class _Display:
    """The console that shows progress, and the stages that are running."""

    def __init__(self) -> None:
        self.console = Console(quiet=True)
        self.stages: list[Stage] = []
        self.bars: Progress | None = None
        self.next_line = 0.0  # the time at which the next plain line is printed; kept from one stage to the next
        self._finished = threading.Event()

    def push(self, new: Stage) -> None:
        """Add a stage below the running ones, and open the display for the first one."""
        self.stages.append(new)
        if self.console.quiet:
            return
        if len(self.stages) == 1:
            self._open()
        if self.bars is not None:
            new._task = self.bars.add_task(
                escape(new.description), total=new.total, completed=new.done, detail=new.detail
            )

    def pop(self, ended: Stage) -> None:
        """Remove a stage, and close the display after the last one."""
        self.stages.remove(ended)
        if self.bars is not None and ended._task is not None:
            self.bars.remove_task(ended._task)
        if not self.stages:
            self._finished.set()
            if self.bars is not None:
                self.bars.stop()
                self.bars = None

    def _open(self) -> None:
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
                transient=True,
            )
            self.bars.start()
        else:
            self._finished = threading.Event()
            threading.Thread(target=self._print_lines, args=(self._finished,), daemon=True).start()

    def _print_lines(self, finished: threading.Event) -> None:
        while not finished.wait(self.next_line - time.monotonic()):
            now = time.monotonic()
            text = "; ".join(stage.line(now) for stage in list(self.stages))
            if text:
                self.next_line = now + INTERVAL_SECONDS
                self.console.print(text, soft_wrap=True, markup=False)


_display = _Display()


def show_progress_on(console: Console) -> None:
    """Show the progress of all further stages on this console."""
    _display.console = console
    _display.next_line = time.monotonic() + INTERVAL_SECONDS


@contextmanager
def stage(description: str, total: int | None = None, *, done: int = 0) -> Iterator[Stage]:
    """Show progress while the block runs.

    Args:
        description: what is being done, such as "scoring validation".
        total: number of steps; None: unknown.
        done: steps already done, such as those before a run was resumed.
    """
    new = Stage(description, total, done, already_done=done)
    _display.push(new)
    try:
        yield new
    finally:
        _display.pop(new)


def format_duration(seconds: float) -> str:
    """Return "41 s", "3 min 20 s" or "2 h 5 min"."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"
