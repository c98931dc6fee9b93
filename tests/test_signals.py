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
from finetune.training.trainer import Trainer
from tests.support import ROOT
from tests.support.helpers import HANG_SECONDS

RECIPES = ROOT / "recipes"
TOY, SCRATCH = RECIPES / "toy.yaml", RECIPES / "toy_from_scratch.yaml"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_training_stops_the_command_with_one_line(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.recipe.loader.load_recipe", lambda *_: os.kill(os.getpid(), number))
    before = [signal.getsignal(number) for number in SIGNALS]
    assert main(["train", str(TOY)]) == code
    name = signal.Signals(number).name
    again = "to resume, start the same recipe with checkpoint.resume_from_checkpoint=auto"
    assert capsys.readouterr().err == f"stopped by {name}; {again}\n"
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_libraries_are_imported_ends_the_process(number: int, code: int) -> None:
    """In C++ code that runs at an import, an exception would abort the process: exit code 134 and a stack trace."""
    program = f"""
import os
from finetune.cli.shared import loading_libraries
with loading_libraries(stderr=True):
    try:
        os.kill(os.getpid(), {int(number)})
    except BaseException:
        print("an exception")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith(f"stopped by {signal.Signals(number).name}\n")


def test_a_signal_in_training_is_recorded_and_the_handlers_are_restored(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_immediately():
        outer = signal.getsignal(signal.SIGTERM)
        with stop_after_step(is_main_process=True) as request:
            assert request.number == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.number == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher forwards the same signal
        assert signal.getsignal(signal.SIGTERM) == outer
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143
    assert capfd.readouterr().err == "\nSIGTERM: finishing the step and saving; a second signal stops immediately\n"


def test_stopping_a_dry_run_mentions_no_checkpoint(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer_step = Trainer.optimizer_step

    def step_with_signal(trainer: Trainer, *step: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        optimizer_step(trainer, *step)

    monkeypatch.setattr(Trainer, "optimizer_step", step_with_signal)
    assert main(["train", str(SCRATCH), "--dry-run", "training.use_cpu=true"]) == 143
    assert capfd.readouterr().err.endswith("\nstopped by SIGTERM in the dry run; nothing was kept\n")


@pytest.mark.parametrize(("seconds_between", "code"), [(0.9, 0), (1.1, -signal.SIGINT)])
def test_a_second_signal_kills_the_process_unless_it_is_a_copy_of_the_first(seconds_between: float, code: int) -> None:
    script = (
        "import os, signal\nfrom finetune import signals\n"
        "with signals.stop_after_step(is_main_process=False):\n"
        f"    for now in (50.0, 50.0 + {seconds_between}):\n"
        "        signals.time.monotonic = lambda: now\n"  # a fake clock: a busy machine changes nothing
        "        os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=HANG_SECONDS)
    assert done.returncode == code


def test_no_handlers_are_set_in_another_thread() -> None:
    recorded = []

    def record() -> None:
        with stop_after_step(is_main_process=False) as request:
            recorded.append((request.number, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    assert recorded == [(0, before)]
