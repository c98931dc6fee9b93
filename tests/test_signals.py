from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from finetune.cli import main
from finetune.signals import SIGNALS, Interrupted, stop_after_step, stop_immediately
from finetune.training.trainer import Loop
from tests.support import ROOT
from tests.support.helpers import HANG_SECONDS

RECIPES = ROOT / "recipes"
TOY, SCRATCH = RECIPES / "toy.yaml", RECIPES / "toy_from_scratch.yaml"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_outside_training_a_signal_stops_with_one_line(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.recipe.load_recipe", lambda *_: os.kill(os.getpid(), number))
    before = [signal.getsignal(each) for each in SIGNALS]
    assert main(["train", str(TOY)]) == code
    name = signal.Signals(number).name
    again = "to go on, start the same recipe with checkpoint.resume_from_checkpoint=auto"
    assert capsys.readouterr().err == f"stopped by {name}; {again}\n"
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_in_training_a_signal_is_noted_and_handlers_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_immediately():
        outer = signal.getsignal(signal.SIGTERM)
        with stop_after_step(is_main_process=True) as request:
            assert request.number == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher hands on the same signal
        assert signal.getsignal(signal.SIGTERM) == outer
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143
    assert capfd.readouterr().err == "\nSIGTERM: finishing the step and saving; a second signal stops at once\n"


def test_a_dry_run_that_is_stopped_names_no_checkpoint(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimise = Loop.optimise

    def signalled(loop: Loop, *step: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        optimise(loop, *step)

    monkeypatch.setattr(Loop, "optimise", signalled)
    assert main(["train", str(SCRATCH), "--dry-run", "training.use_cpu=true"]) == 143
    assert capfd.readouterr().err.endswith("\nstopped by SIGTERM in the dry run; nothing was kept\n")


@pytest.mark.parametrize(("seconds_between", "code"), [(0.9, 0), (1.1, -signal.SIGINT)])
def test_a_second_signal_stops_at_once_unless_it_is_the_first_handed_on(seconds_between: float, code: int) -> None:
    script = (
        "import os, signal\nfrom finetune import signals\n"
        "with signals.stop_after_step(is_main_process=False):\n"
        f"    for now in (50.0, 50.0 + {seconds_between}):\n"
        "        signals.time.monotonic = lambda: now\n"  # no real time passes, so a busy machine is no other
        "        os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=HANG_SECONDS)
    assert done.returncode == code


def test_threads_have_no_handlers() -> None:
    seen = []

    def work() -> None:
        with stop_after_step(is_main_process=False) as request:
            seen.append((request.number, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
