"""What is seen while training runs: a bar with loss, speed and time left, on the main process only."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from finetune.runs.results import number


class TrainingProgress:
    """A progress bar over optimiser steps; evaluations are printed above it as lines that stay."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            disable=console.quiet,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, total: int, done: int) -> None:
        """Show `done` of `total` steps."""
        self._task = self._bar.add_task("", total=total, completed=done, said="")

    def advance(self) -> None:
        """Count one step."""
        if self._task is not None:
            self._bar.advance(self._task)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True)

    def logged(self, entry: dict[str, Any]) -> None:
        """Show the loss and speed of a logging step beside the bar."""
        if self._task is not None:
            said = f"loss {entry['loss']:.4f}  {entry['samples_per_second']:.0f} rows/s"
            self._bar.update(self._task, said=said)

    def evaluated(self, entry: dict[str, Any], *, best: bool) -> None:
        """Print an evaluation as a line."""
        values = "  ".join(
            f"{name.removeprefix('eval_')} {number(value, 4)}"
            for name, value in entry.items()
            if name.startswith("eval_")
        )
        self._console.print(
            f"step {entry['step']}, epoch {entry['epoch']:.2f}:  {values}{'  [green]best[/]' if best else ''}",
            soft_wrap=True,
        )
