from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from finetune import processes
from finetune.errors import TrainingError
from finetune.processes import on_main_process


def test_what_fails_on_the_main_process_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[str]] = []
    monkeypatch.setattr(processes, "broadcast_object_list", lambda told: sent.append(list(told)) or sent[0])

    def fail() -> None:
        raise TrainingError("the disk is full")

    for main in (True, False):  # the other one hears what the first sent
        with pytest.raises(TrainingError, match="the disk is full"):
            on_main_process(SimpleNamespace(is_main_process=main), fail)
    assert sent == [["the disk is full"], [""]]


def test_the_main_process_alone_works(accelerator: Accelerator) -> None:
    done: list[int] = []
    on_main_process(accelerator, lambda: done.append(1))
    on_main_process(SimpleNamespace(is_main_process=False), lambda: done.append(2))
    assert done == [1]
