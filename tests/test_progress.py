from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from finetune import progress
from finetune.progress import Stage, show_progress_on, stage


@pytest.fixture(autouse=True)
def _restore_quiet_console() -> Iterator[None]:
    yield
    show_progress_on(Console(quiet=True))


def timers() -> int:
    return sum(thread.name.endswith("(_print_lines)") for thread in threading.enumerate())


def test_outside_a_terminal_running_stages_print_one_line_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.01)
    show_progress_on(Console(file=file, force_terminal=False, width=200))
    with stage("head analysis", 2) as outer, stage("shapley [of 3]", 8) as inner:
        inner.advance(2)
        outer.describe("method 1")
        deadline = time.monotonic() + 30
        while "shapley" not in file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert timers() == 1
    line = file.getvalue().splitlines()[-1]
    assert line.startswith("head analysis: 0 of 2 (0 %), method 1, ")
    assert "; shapley [of 3]: 2 of 8 (25 %), " in line
    assert line.endswith(" left")


def test_stages_shorter_than_the_interval_are_not_silent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.2)
    show_progress_on(Console(file=file, force_terminal=False, width=200))
    deadline = time.monotonic() + 30
    while not file.getvalue() and time.monotonic() < deadline:
        with stage("scoring"):
            time.sleep(0.01)
    assert file.getvalue().startswith("scoring, ")


def test_a_terminal_shows_bars_that_are_removed_again() -> None:
    file = io.StringIO()
    show_progress_on(Console(file=file, force_terminal=True, width=120))
    with stage("scoring validation", 4) as outer, stage("unknown length") as inner:
        outer.advance(3)
        inner.advance()
    output = file.getvalue()
    assert "scoring validation" in output
    assert "unknown length" in output
    assert progress._display.bars is None
    assert progress._display.stages == []


def test_a_quiet_console_shows_nothing_and_starts_no_thread() -> None:
    before = timers()
    file = io.StringIO()
    show_progress_on(Console(file=file, quiet=True))
    with stage("scoring", 3) as running:
        running.advance()
        assert timers() == before
    assert (file.getvalue(), running.done) == ("", 1)


def test_a_stage_ends_with_an_error_too() -> None:
    with pytest.raises(ValueError, match="boom"), stage("scoring", 3):
        raise ValueError("boom")
    assert progress._display.stages == []


@pytest.mark.parametrize(
    ("done", "before", "total", "seconds", "expected"),
    [
        (0, 0, 10, 5, "work: 0 of 10 (0 %), 5 s so far"),
        (2, 0, 10, 10, "work: 2 of 10 (20 %), 40 s left"),
        (60, 50, 100, 200, "work: 60 of 100 (60 %), 13 min 20 s left"),  # 10 steps of a resumed run took 200 s
        (1, 0, None, 7300, "work, 2 h 1 min so far"),
        (0, 0, 0, 1, "work: 0 of 0 (0 %), 1 s so far"),
    ],
)
def test_the_time_left_follows_from_the_steps_done_since_the_start(
    done: int, before: int, total: int | None, seconds: float, expected: str
) -> None:
    assert Stage("work", total, done, started=100.0, already_done=before).line(100.0 + seconds) == expected
